// The reference server on a free port: in memory, or with its file store in a folder.
import { DurableStreamTestServer } from "@durable-streams/server"

const folder = process.argv[2]
const server = new DurableStreamTestServer({
  port: 0,
  host: "127.0.0.1",
  ...(folder ? { dataDir: folder } : {}),
})
console.log(await server.start())
