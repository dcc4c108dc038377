// An order, as its events tell: now and live, or as it was at a moment that the slider chooses.

import { stream } from "@durable-streams/client"

const id = decodeURIComponent(location.pathname.split("/").at(-1))
const address = `/orders/${encodeURIComponent(id)}`
const at = (name) => document.getElementById(name)

// --- the order: state is a fold of events, and so is any past state ---------------------------------

const initialState = { customer: "", lines: {}, paid: false }

function applyEvent(state, { type, data }) {
  const { lines } = state
  switch (type) {
    case "OrderOpened":
      return { ...state, customer: data.customer }
    case "ItemAdded": {
      const quantity = (lines[data.item]?.quantity ?? 0) + 1
      return { ...state, lines: { ...lines, [data.item]: { quantity, price: data.price } } }
    }
    case "ItemRemoved": {
      const { [data.item]: line, ...others } = lines
      const left = { ...line, quantity: line.quantity - 1 }
      return { ...state, lines: left.quantity ? { ...lines, [data.item]: left } : others }
    }
    case "OrderPaid":
      return { ...state, paid: true }
    default:
      return state
  }
}

const told = {
  OrderOpened: ({ customer }) => `opened for ${customer}`,
  ItemAdded: ({ item }) => `${item} added`,
  ItemRemoved: ({ item }) => `${item} removed`,
  OrderPaid: () => "paid",
}

// --- reading: replay, then the live tail -----------------------------------------------------------

const events = []
let moment = null // the chosen one, in milliseconds since the epoch; null follows the present

async function follow() {
  for (;;) {
    try {
      const response = await stream({
        url: new URL(`/v1/stream/orders/${encodeURIComponent(id)}/events`, location.href),
        offset: "-1",
        live: "sse",
        fetch: watchedFetch,
        backoffOptions: { initialDelay: 100, maxDelay: 2000, multiplier: 1.5 },
        warnOnHttp: false,
      })
      events.length = 0
      response.subscribeJson((batch) => {
        events.push(...batch.items)
        show()
      })
      await response.closed
    } catch (error) {
      if (error.status !== 404) console.error(error)
      if (error.status === 404) showMissing()
    }
    await new Promise((done) => setTimeout(done, 1000))
  }
}

// The client reconnects by itself; the page only says how that goes.
async function watchedFetch(...request) {
  try {
    const response = await fetch(...request)
    showConnection(response.ok || response.status === 404)
    return response
  } catch (error) {
    showConnection(false)
    throw error
  }
}

// --- writing: commands, which the server's aggregate takes or refuses ------------------------------

async function command(name, body = {}) {
  at("refusal").textContent = ""
  try {
    const response = await fetch(`${address}/${name}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    })
    if (!response.ok) at("refusal").textContent = (await response.json()).detail
  } catch {
    at("refusal").textContent = "The server cannot be reached; nothing was changed."
  }
}

// --- showing ---------------------------------------------------------------------------------------

const money = (cents) => (cents / 100).toFixed(2)
const clock = (time) => new Date(time).toLocaleTimeString([], { hour12: false })
const changed = (element, text) => element.textContent !== text && (element.textContent = text)

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties)
  made.append(...children)
  return made
}

function showConnection(live) {
  at("connection").dataset.live = live
  changed(at("connection"), live ? "live" : "connecting again")
}

function showMissing() {
  at("opening").hidden = false
}

function show() {
  const moments = [...new Set(events.map((event) => event.timestamp))]
  if (!moments.length) return
  at("opening").hidden = true
  at("order").hidden = at("time").hidden = false
  const seen = moment === null ? events : events.filter((event) => event.timestamp <= moment)
  showOrder(seen.reduce(applyEvent, initialState))
  showTime(moments, seen.length)
}

function showOrder(order) {
  const past = moment !== null
  document.body.classList.toggle("past", past)
  changed(at("owner"), order.customer)
  changed(at("status"), order.paid ? "paid" : "open")
  const lines = Object.entries(order.lines)
  at("lines").replaceChildren(
    ...lines.map(([item, { quantity, price }]) => {
      const row = rowOf(item)
      row.querySelector("button").disabled = past || order.paid
      changed(row.querySelector("span"), String(quantity))
      changed(row.lastChild, money(quantity * price))
      return row
    }),
  )
  const total = lines.reduce((sum, [, { quantity, price }]) => sum + quantity * price, 0)
  changed(at("total"), money(total))
  for (const button of at("commands").querySelectorAll("button")) {
    button.disabled = past || order.paid
  }
}

const rows = new Map() // kept, so that the keyboard's focus stays where it is

function rowOf(item) {
  if (!rows.has(item)) {
    const less = element("button", { textContent: "−", onclick: () => command("remove", { item }) })
    less.setAttribute("aria-label", `One ${item} less`)
    const name = element("th", { scope: "row", textContent: item })
    rows.set(item, element("tr", {}, name, element("td", {}, less, element("span")), element("td")))
  }
  return rows.get(item)
}

function showTime(moments, seen) {
  const slider = at("moment")
  const last = moments.length - 1
  const place = moment === null ? last : moments.findLastIndex((time) => time <= moment)
  slider.max = last
  slider.value = place
  const text = moment === null ? "now" : clock(moments[place])
  slider.setAttribute("aria-valuetext", text)
  changed(at("shown"), text)
  at("now").disabled = moment === null
  at("history").replaceChildren(
    ...events.map(({ type, data, timestamp }, number) =>
      element(
        "li",
        { className: number < seen ? "" : "later" },
        element("time", { textContent: clock(timestamp) }),
        element("span", { textContent: told[type]?.(data) ?? type }),
      ),
    ),
  )
}

// --- what a person does ----------------------------------------------------------------------------

at("id").textContent = id
document.title = `Order ${id}`
at("opening").onsubmit = (submitted) => {
  submitted.preventDefault()
  command("open", { customer: at("customer").value })
}
at("pay").onclick = () => command("pay")
at("now").onclick = () => {
  moment = null
  show()
}
at("moment").oninput = ({ target }) => {
  const moments = [...new Set(events.map((event) => event.timestamp))]
  moment = target.value === target.max ? null : moments[target.value]
  show()
}
const menu = await (await fetch("/menu")).json()
at("menu").replaceChildren(
  ...Object.entries(menu).map(([item, price]) =>
    element("button", { textContent: `${item} ${money(price)}`, onclick: () => command("add", { item }) }),
  ),
)
follow()
