"""What parts of PTX need, as ptxas 13.5.37 has it.

Written by ``python -m tests.requirements write``; not edited by hand. A line has the first version and the first target, with a
minus where any will do, and what needs them: an opcode with modifiers of the mnemonic in their order, others between or not, but
none of those with a ``!``; a special register; or a directive. ``#4`` is an instruction of four operands, ``_`` one with a result
that is not wanted, ``pred`` one with a predicate in a number's place. The largest that applies counts. What needs no more than
PTX 2.3 and sm_20, the first with 64-bit addresses, is not listed.
"""

TABLE = """
-   sm_72   : wmma s32, wmma s8, wmma u8
-   sm_75   : cvt s2, cvt s4, cvt u2, cvt u4, wmma m8n8k128, wmma m8n8k32
-   sm_80   : mma m16n8k128, mma m16n8k256
-   sm_90   : mbarrier cluster, mbarrier relaxed, mbarrier release #3 !noComplete
3.0 -       : %pm4, %pm5, %pm6, %pm7, .target sm_30, mad cc, madc, pmevent mask
3.0 sm_30   : shfl, vabsdiff2, vabsdiff4, vadd2, vadd4, vavrg2, vavrg4, vmax2, vmax4, vmin2, vmin4, vset2, vset4, vsub2, vsub4
3.1 -       : .generic, .target sm_35, .weak, cvta const, isspacep const, suld, suq, sust, tex, tld4, txq
3.1 sm_30   : %globaltimer, %globaltimer_hi, %globaltimer_lo
3.1 sm_32   : atom and b64, atom max u64, atom min u64, atom or b64, atom s64, atom xor b64, ld nc, red b64, red max u64
3.1 sm_32   : red min u64, red s64, shf
4.0 -       : .target sm_32, .target sm_50, rsqrt ftz f64
4.0 sm_30   : istypep
4.0 sm_50   : %pm0_64, %pm1_64, %pm2_64, %pm3_64, %pm4_64, %pm5_64, %pm6_64, %pm7_64
4.1 -       : %dynamic_smem_size, %total_smem_size, .target sm_37, .target sm_52, suq array_size, txq array_size
4.1 -       : txq num_mipmap_levels
4.1 sm_30   : sust p a1d, sust p a2d
4.2 -       : .target sm_53
4.2 sm_53   : .f16x2, add f16, add f16x2, fma f16, fma f16x2, mul f16, mul f16x2, set f16, set f16x2, setp f16, setp f16x2
4.2 sm_53   : sub f16, sub f16x2
4.3 -       : add cc s64, add cc u64, addc cc s64, addc cc u64, mad cc s64, mad cc u64, madc cc s64, madc cc u64, sub cc s64
4.3 -       : sub cc u64, subc cc s64, subc cc u64
4.3 sm_30   : tld4 a2d
4.3 sm_50   : lop3
5.0 -       : %clock_hi, .common, .target sm_60, .target sm_61, .target sm_62
5.0 sm_60   : atom cta, atom f64, atom gpu, atom sys, red cta, red f64, red gpu, red sys
5.0 sm_61   : dp2a, dp4a
6.0 -       : .target sm_70, shfl sync
6.0 sm_30   : bar warp, barrier, brx, fns, vote sync
6.0 sm_53   : neg f16, neg f16x2
6.0 sm_70   : atom acq_rel, atom acquire, atom relaxed, atom release, fence, ld acquire, ld relaxed, ld weak, match, red relaxed
6.0 sm_70   : red release, st relaxed, st release, st weak
6.1 -       : .target sm_72
6.2 sm_30   : activemask
6.2 sm_60   : atom noftz, red noftz
6.2 sm_70   : nanosleep
6.3 -       : .target sm_75
6.3 sm_30   : .alias
6.3 sm_70   : atom b16, atom f16, red f16, wmma
6.4 sm_30   : .noreturn
6.4 sm_70   : mma
6.5 -       : set s16 f16, set s32 f16, set s32 f16x2, set u16 f16, set u32 f16, set u32 f16x2
6.5 sm_53   : abs f16, abs f16x2
6.5 sm_72   : cvt pack
6.5 sm_75   : ldmatrix, mma m16n8k8, mma s32
7.0 -       : .target sm_80, mma xor
7.0 sm_75   : ex2 f16, ex2 f16x2, tanh
7.0 sm_80   : abs bf16, abs bf16x2, cp, cvt bf16, cvt bf16x2, cvt f16x2, cvt relu, cvt tf32, fma bf16, fma bf16x2, fma relu
7.0 sm_80   : max NaN, max bf16, max bf16x2, max f16, max f16x2, mbarrier, min NaN, min bf16, min bf16x2, min f16, min f16x2
7.0 sm_80   : mma bf16, mma f64, mma m16n8k16, mma m16n8k32, mma m16n8k64, mma tf32, neg bf16, neg bf16x2, redux, wmma bf16
7.0 sm_80   : wmma m16n16k8, wmma m8n8k4
7.1 -       : .mask, .target sm_86, cvt f32 bf16, mbarrier arrive _, mbarrier parity
7.1 sm_80   : mma and, mma sp, wmma and
7.2 sm_86   : max xorsign, min xorsign
7.3 sm_52   : alloca, stackrestore, stacksave
7.4 -       : .target sm_87, cp L2::128B, cp L2::256B, cp L2::64B, cp L2::cache_hint
7.4 sm_70   : ld L1::evict_first, ld L1::evict_last, ld L1::evict_normal, ld L1::evict_unchanged, ld L1::no_allocate
7.4 sm_70   : st L1::evict_first, st L1::evict_last, st L1::evict_normal, st L1::evict_unchanged, st L1::no_allocate
7.4 sm_75   : ld L2::128B, ld L2::64B
7.4 sm_80   : applypriority, atom L2::cache_hint, createpolicy, discard, ld L2::256B, prefetch L2::evict_last
7.4 sm_80   : prefetch L2::evict_normal, red L2::cache_hint
7.5 -       : cp pred, fence proxy
7.5 sm_60   : membar proxy
7.6 sm_70   : bmsk, szext
7.6 sm_80   : %reserved_smem_offset_0, %reserved_smem_offset_1, %reserved_smem_offset_begin, %reserved_smem_offset_cap
7.6 sm_80   : %reserved_smem_offset_end
7.7 sm_70   : cvta param, isspacep param
7.8 -       : .target sm_89, .target sm_90, atom shared::cta, bar cta, barrier cta, cp shared::cta b64, cvta shared::cta
7.8 -       : isspacep shared::cta, ld shared::cta, ldmatrix shared::cta, mbarrier shared::cta, red shared::cta, st shared::cta
7.8 -       : wmma shared::cta
7.8 sm_70   : cvt satfinite
7.8 sm_75   : movmatrix
7.8 sm_89   : cvt e4m3x2, cvt e5m2x2
7.8 sm_90   : %cluster_ctaid, %cluster_ctarank, %cluster_nctaid, %cluster_nctarank, %clusterid, %is_explicit_cluster, %nclusterid
7.8 sm_90   : .explicitcluster, .maxclusterrank, .reqnctapercluster, add bf16, add bf16x2, atom bf16, atom bf16x2, atom cluster
7.8 sm_90   : cvt bf16 bf16, cvt bf16 f16, cvt bf16 f64, cvt bf16 s16, cvt bf16 s32, cvt bf16 s64, cvt bf16 u16, cvt bf16 u32
7.8 sm_90   : cvt bf16 u64, cvt f16 bf16, cvt f64 bf16, cvt ftz f32 bf16, cvt rmi bf16, cvt rn tf32, cvt rni bf16, cvt rpi bf16
7.8 sm_90   : cvt rz tf32, cvt rzi bf16, ex2 bf16, ex2 bf16x2, fence cluster, griddepcontrol, isspacep shared::cluster
7.8 sm_90   : ld cluster, mbarrier arrive #3 !noComplete, mbarrier arrive_drop #3 !noComplete, mbarrier try_wait
7.8 sm_90   : mma m16n8k16 f64, mma m16n8k4 f64, mma m16n8k8 f64, mul bf16, mul bf16x2, red bf16, red bf16x2, red cluster
7.8 sm_90   : atom shared::cluster, barrier cluster, cvta shared::cluster, getctarank, ld shared::cluster, mapa
7.8 sm_90   : red shared::cluster, st shared::cluster
7.8 sm_90   : set bf16, set bf16x2, setp bf16, setp bf16x2, st cluster, stmatrix, sub bf16, sub bf16x2, tanh bf16, tanh bf16x2
8.0 -       : .target sm_90a, mbarrier acquire, mbarrier release
8.0 sm_50   : %current_graph_exec
8.0 sm_90   : add s16x2, add u16x2, elect, fence async, fence async.global, fence async.shared::cta, fence release, max relu
8.0 sm_90   : max s16x2, max u16x2, mbarrier complete_tx, mbarrier expect_tx, min relu, min s16x2, min u16x2
8.0 sm_90   : barrier cluster acquire, barrier cluster relaxed, barrier cluster release, mbarrier shared::cluster
8.0 sm_90   : cp async bulk, cp reduce, prefetch tensormap
8.0 sm_90a  : setmaxnreg, wgmma
8.1 -       : cvt relu satfinite, cvt rz satfinite, cvt satfinite bf16, cvt satfinite bf16x2, cvt satfinite f16
8.1 -       : cvt satfinite f16x2 f32, cvt satfinite tf32
8.1 sm_70   : .param 4353
8.1 sm_90   : red async, st async
8.1 sm_90   : %aggr_smem_size, atom v2, atom v4, atom v8, red v2, red v4, red v8
8.2 sm_70   : lop3 and, lop3 or
8.3 -       : ld param::entry
8.3 sm_70   : .b128, cvta param::entry, isspacep param::entry, ld b128, ldu b128, mov b128, st b128
8.3 sm_90   : atom b128, fence tensormap::generic, tensormap
8.3 sm_90a  : tensormap replace
8.4 -       : atom sys b128
8.4 sm_89   : mma e4m3, mma e5m2
8.5 sm_80   : mma sp::ordered_metadata
8.6 -       : .target sm_100, .target sm_100a, .target sm_101, .target sm_101a, fence release !mbarrier_init, fence release cta
8.6 -       : fence release gpu, fence release sys, mbarrier arrive relaxed, mbarrier arrive_drop relaxed, mbarrier relaxed #3
8.6 -       : mbarrier relaxed _, mbarrier try_wait relaxed
8.6 -       : cp bulk shared::cta global mbarrier::complete_tx::bytes, cp tensor shared::cta global mbarrier::complete_tx::bytes
8.6 sm_90   : fence acquire, fence async::generic, fence sync_restrict::shared::cluster, fence sync_restrict::shared::cta
8.6 sm_100  : add f32x2, cvt rn satfinite tf32, cvt rz satfinite tf32, fma f32x2, mul f32x2, sub f32x2
8.7 -       : .target sm_120, .target sm_120a, mma f16 e4m3, mma f16 e5m2, mma m16n8k16 e4m3, mma m16n8k16 e5m2
8.8 -       : .target sm_100f, .target sm_101f, .target sm_103, .target sm_103a, .target sm_103f, .target sm_120f, .target sm_121
8.8 -       : .target sm_121a, .target sm_121f
8.8 sm_100  : ld v4 b64, ld v4 f64, ld v4 s64, ld v4 u64, ld v8 b32, ld v8 f32, ld v8 s32, ld v8 u32, max #4, min #4, st v4 b64
8.8 sm_100  : st v4 f64, st v4 s64, st v4 u64, st v8 b32, st v8 f32, st v8 s32, st v8 u32
9.0 -       : .target sm_110, .target sm_110a, .target sm_110f, .target sm_88
9.0 sm_80   : .abi_preserve, .abi_preserve_control
9.0 sm_90   : .blocksareclusters
9.1 -       : ld volatile local, st volatile local
9.1 sm_100f : cvt e4m3x2 bf16x2, cvt e5m2x2 bf16x2
9.2 sm_100f : cvt bf16x2 e4m3x2, cvt bf16x2 e5m2x2
9.4 -       : .target sm_107, .target sm_107a, .target sm_107f
"""
