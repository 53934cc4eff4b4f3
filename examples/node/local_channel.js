// Calls over the local channel from Node.js, with nothing but a socket and the .proto files of kaasd: a length of four bytes,
// little-endian, then a LocalFrame. Registers nothing: it runs a function that there is, all calls in flight at once.
//
//   npm ci && node local_channel.js unix:/run/kaasd/kaasd.sock FUNCTION RETURNED_BUFFER [CALLS]
import { connect } from "node:net";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import protobuf from "protobufjs";

const [address, name, buffer, calls = "1"] = process.argv.slice(2);
if (!buffer) {
  console.error("usage: node local_channel.js ADDRESS FUNCTION RETURNED_BUFFER [CALLS]");
  process.exit(2);
}
const protos = fileURLToPath(new URL("../../proto", import.meta.url));
const root = new protobuf.Root();
root.resolvePath = (_, path) => (path.startsWith("google/") ? path : `${protos}/${path}`);
const { LocalFrame } = (await root.load("kaas/v1/local.proto", { keepCase: true })).lookup("kaas.v1");

// gRPC says where the channel is, and which store the server has.
const definition = loader.loadSync("kaas/v1/admin.proto", { includeDirs: [protos], keepCase: true });
const { AdminService } = grpc.loadPackageDefinition(definition).kaas.v1;
const admin = new AdminService(address, grpc.credentials.createInsecure());
const info = await promisify(admin.GetServerInfo.bind(admin))({});
admin.close();
if (!info.local_socket) throw new Error(`${address} has no local channel`);

const socket = connect(info.local_socket);
const waiting = new Map();
let received = Buffer.alloc(0);
socket.on("data", (data) => {
  received = Buffer.concat([received, data]);
  while (received.length >= 4 && received.length >= 4 + received.readUInt32LE()) {
    const end = 4 + received.readUInt32LE();
    const frame = LocalFrame.decode(received.subarray(4, end));
    received = received.subarray(end);
    const answer = waiting.get(Number(frame.id));
    if (!answer) throw new Error(frame.error?.message ?? "an answer that nothing waits for");
    waiting.delete(Number(frame.id));
    if (frame.error) answer.reject(new Error(frame.error.message));
    else answer.resolve(frame);
  }
});
socket.on("close", () => waiting.forEach(({ reject }) => reject(new Error("the server has closed the connection"))));

let last = 0;
function call(body) {
  const id = ++last;
  const content = LocalFrame.encode(LocalFrame.create({ id, ...body })).finish();
  const length = Buffer.alloc(4);
  length.writeUInt32LE(content.length);
  socket.write(Buffer.concat([length, content]));
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

const { hello } = await call({ hello: {} });
if (hello.store_id !== info.store_id) throw new Error("another server answers there");
const invoke = { function: name, return_buffers: [buffer] };
const frames = await Promise.all(Array.from({ length: Number(calls) }, () => call({ timeout_ns: 10e9, invoke })));
for (const { invoked } of frames) console.log(Buffer.from(invoked.outputs[buffer]).toString("hex"));
socket.end();
