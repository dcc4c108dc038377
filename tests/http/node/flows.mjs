// What a page, or a service on Node, does with event-sourced orders: each flow is a command of this
// program, `node flows.mjs FLOW SERVER ...`, and says what it has found in lines of JSON.

import { DurableStream, IdempotentProducer, stream } from "@durable-streams/client"

const [flow, server, ...args] = process.argv.slice(2)
const say = (told) => console.log(JSON.stringify(told))

const initialState = { customer: null, items: {}, paid: false }

function applyEvent(state, { type, data }) {
  switch (type) {
    case "OrderCreated":
      return { ...state, customer: data.customer }
    case "ItemAdded":
      return {
        ...state,
        items: { ...state.items, [data.sku]: (state.items[data.sku] ?? 0) + data.quantity },
      }
    case "OrderPaid":
      return { ...state, paid: true }
    default:
      return state
  }
}

const eventsOf = (kind, id) => `${server}/v1/stream/${kind}/${id}/events`

const message = (version, type, data) => ({
  type,
  id: crypto.randomUUID(),
  version,
  timestamp: Date.now(),
  data,
  metadata: { source: "web" },
})

const flows = {
  // One stream an order, a user, a workspace.
  async create(id) {
    for (const kind of ["orders", "users", "workspaces"]) {
      const made = await DurableStream.create({
        url: eventsOf(kind, id),
        contentType: "application/json",
      })
      say({ url: made.url, contentType: made.contentType, ...(await made.head()) })
    }
  },

  async append(id) {
    const order = await DurableStream.connect({ url: eventsOf("orders", id) })
    await order.append(JSON.stringify(message(1, "OrderCreated", { customer: "Ada" })))
    await order.append(JSON.stringify(message(2, "ItemAdded", { sku: "tea", quantity: 2 })))
    say(await order.head())
  },

  // Exactly once, with several batches on their way at the same time.
  async produce(id, count) {
    const order = await DurableStream.connect({ url: eventsOf("orders", id) })
    const failed = []
    const producer = new IdempotentProducer(order, "order-service-1", {
      autoClaim: true,
      maxBatchBytes: 500,
      onError: (error) => failed.push(String(error)),
    })
    for (let number = 0; number < Number(count); number++) {
      const added = { sku: `sku-${number}`, quantity: 1 }
      producer.append(JSON.stringify(message(number + 1, "ItemAdded", added)))
    }
    await producer.flush()
    await producer.detach()
    say({ failed, next: producer.nextSeq })
  },

  async replay(id) {
    const res = await stream({ url: eventsOf("orders", id), offset: "-1", live: false })
    const events = await res.json()
    say({ state: events.reduce(applyEvent, initialState), events })
  },

  // Replay, then the live tail, with a checkpoint to come back to.
  async tail(id, live, offset, saved) {
    const res = await stream({
      url: eventsOf("orders", id),
      offset,
      live: live === "true" ? true : live,
    })
    let state = JSON.parse(saved ?? JSON.stringify(initialState))
    res.subscribeJson(async (batch) => {
      for (const event of batch.items) {
        state = applyEvent(state, event)
      }
      if (!batch.items.length) return
      say({ state, types: batch.items.map((event) => event.type), checkpoint: batch.offset })
    })
    await res.closed
  },

  async stateAt(id, targetTimestamp) {
    const res = await stream({ url: eventsOf("orders", id), offset: "-1", live: false })
    const events = await res.json()
    const eventsUntilTime = events.filter((e) => e.timestamp <= Number(targetTimestamp))
    say(eventsUntilTime.reduce(applyEvent, initialState))
  },
}

await flows[flow](...args)
