// A first request from Node.js: the dot product of two vectors, with only the .proto files of kaasd.
//
//   npm ci && node first_request.js unix:/run/kaasd/kaasd.sock
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const repository = (path) => fileURLToPath(new URL(`../../${path}`, import.meta.url));
const CHUNK_BYTES = 1 << 20;

const services = ["executor", "library", "kv"].map((name) => `kaas/v1/${name}.proto`);
const { v1 } = grpc.loadPackageDefinition(loader.loadSync(services, { includeDirs: [repository("proto")], keepCase: true })).kaas;
const address = process.argv[2] ?? process.env.KAAS_ADDRESS;
if (!address) {
  console.error("first_request.js: set KAAS_ADDRESS to the address that kaasd prints, or give it as an argument");
  process.exit(2);
}
const connect = (Service) => new Service(address, grpc.credentials.createInsecure());
const [executor, library, kv] = [v1.ExecutorService, v1.LibraryService, v1.KvService].map(connect);

// Sends a header, then the bytes in chunks, and resolves to the reply.
function upload(client, method, header, bytes) {
  return new Promise((resolve, reject) => {
    const call = client[method]((error, reply) => (error ? reject(error) : resolve(reply)));
    call.write({ header: { ...header, size_bytes: bytes.length } });
    for (let i = 0; i < bytes.length; i += CHUNK_BYTES) call.write({ chunk: bytes.subarray(i, i + CHUNK_BYTES) });
    call.end();
  });
}

// Receives a header, then the bytes in chunks, and resolves to the bytes.
async function download(key) {
  const chunks = [];
  for await (const message of kv.Get({ key })) if (message.chunk) chunks.push(message.chunk);
  return Buffer.concat(chunks);
}

const n = 1024;
const a = Uint32Array.from({ length: n }, (_, i) => i);
const b = Uint32Array.from({ length: n }, (_, i) => 3 * i + 1);
await upload(kv, "Put", { key: "a" }, Buffer.from(a.buffer));
await upload(kv, "Put", { key: "b" }, Buffer.from(b.buffer));
const ptx = await upload(library, "UploadLibrary", { file_name: "dot.ptx" }, readFileSync(repository("examples/kernels/dot.ptx")));

const buffer = (name, access) => ({ buffer: { buffer: name, access: `ACCESS_${access}` } });
const count = { literal: { type: "Q", uint_value: n } };
const request = {
  kernels: [
    {
      library: ptx.library.id, name: "prodKern", grid: { x: 1 }, block: { x: n },
      arguments: [count, buffer("a", "INPUT"), buffer("b", "INPUT"), buffer("p", "TEMPORARY")],
    },
    {
      library: ptx.library.id, name: "sumKern", grid: { x: 1 }, block: { x: n / 2 },
      arguments: [buffer("p", "INPUT"), buffer("c", "OUTPUT")],
    },
  ],
  buffers: [
    { name: "a", size_bytes: 4 * n },
    { name: "b", size_bytes: 4 * n },
    { name: "p", size_bytes: 4 * n, ephemeral: true },
    { name: "c", size_bytes: 4 },
  ],
};
const reply = await promisify(executor.Submit.bind(executor))({ request });
console.error(`ran on ${reply.device}`);
console.log((await download("c")).readUInt32LE());
