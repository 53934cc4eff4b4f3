"""LLVM modules to machine code, as object files; and object files to code that runs."""

from __future__ import annotations

import ctypes
import os
import threading
from functools import cache

from llvmlite import binding, ir

_LOCK = threading.Lock()
"""LLVM's global state, which llvmlite shares between threads."""


PROCESSOR_VARIABLE = "KAAS_EMULATOR_PROCESSOR"
"""In the environment: LLVM's name of a kind of processor, such as ``x86-64``, to make code for in place of this machine's."""


@cache
def processor() -> tuple[str, str]:
    """Return LLVM's name of the processor that code is made for, and its features."""
    if name := os.environ.get(PROCESSOR_VARIABLE):
        return name, ""
    return binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()


def has_half() -> bool:
    """Whether that converts half precision. Where it does not, LLVM would call a function that a process need not have."""
    return _target().triple.startswith(("aarch64", "arm64")) or "+f16c" in processor()[1].split(",")


def host() -> str:
    """Return what tells this machine's kind of processor from those whose machine code may be another."""
    return f"{binding.get_default_triple()} {' '.join(processor())}"


@cache
def _target() -> binding.TargetMachine:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple()
    name, features = processor()
    return target.create_target_machine(cpu=name, features=features, opt=2, reloc="default", codemodel="jitdefault")


def _few_passes() -> binding.ModulePassManager:
    passes = binding.create_new_module_pass_manager()
    passes.add_always_inliner_pass()
    passes.add_sroa_pass()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    return passes


def to_object(module: ir.Module, *, is_long: bool = False) -> bytes:
    """Return the object file of a module, to be loaded by ``NativeCode`` in this process or in another on this machine.

    Of one ``is_long`` no more is made than of what it is worth: the code is as short, and runs as fast, in a quarter of the time.
    """
    with _LOCK:
        machine = _target()
        module.triple = machine.triple
        module.data_layout = str(machine.target_data)
        with binding.parse_assembly(str(module)) as parsed:
            parsed.verify()
            options = binding.create_pipeline_tuning_options(speed_level=2)
            options.loop_vectorization = False  # checked accesses and calls leave nothing to vectorise
            options.slp_vectorization = False
            builder = binding.create_pass_builder(machine, options)
            passes = _few_passes() if is_long else builder.getModulePassManager()
            passes.run(parsed, builder)
            content: bytes = machine.emit_object(parsed)
            return content


class NativeCode:
    """Machine code in this process. Addresses are valid until ``close``."""

    def __init__(self, content: bytes) -> None:
        """``content`` is an object file. Its calls of the C library are bound to this process's."""
        with _LOCK:
            _target()
            # The engine owns its module, and a target machine belongs to one engine only.
            self._engine: binding.ExecutionEngine | None = binding.create_mcjit_compiler(
                binding.parse_assembly(""), _target.__wrapped__()
            )
            self._engine.add_object_file(binding.ObjectFileRef.from_data(content))
            self._engine.finalize_object()

    def address(self, name: str) -> int:
        """Return where a function or variable is."""
        assert self._engine is not None
        found = int(self._engine.get_function_address(name) or self._engine.get_global_value_address(name))
        assert found, name
        return found

    def pointer_at(self, name: str) -> int:
        """Return the pointer that a variable holds."""
        return ctypes.c_uint64.from_address(self.address(name)).value

    def close(self) -> None:
        """Free the code. Idempotent."""
        with _LOCK:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
