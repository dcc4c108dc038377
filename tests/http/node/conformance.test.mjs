import { runConformanceTests } from "@durable-streams/server-conformance-tests"

runConformanceTests({
  baseUrl: process.env.SERVER,
  longPollTimeoutMs: Number(process.env.LONG_POLL_TIMEOUT_MS),
  subscriptions: true,
})
