// What a user interface does that follows a projection: `node changes.mjs URL` keeps its tables by
// the published StreamDB, and says them in a line of JSON each time they have changed.

import { createStateSchema } from "@durable-streams/state"
import { createStreamDB } from "@durable-streams/state/db"

const [url] = process.argv.slice(2)
const anything = { "~standard": { version: 1, vendor: "tests", validate: (value) => ({ value }) } }

const db = createStreamDB({
  streamOptions: { url, contentType: "application/json" },
  state: createStateSchema({
    halls: { schema: anything, type: "http_halls", primaryKey: "hall" },
    // Its primary key has two columns: the messages' key goes into a field of its own.
    seats: { schema: anything, type: "http_seats", primaryKey: "key" },
  }),
  onBatch: () => setTimeout(say),
})

// Without the fields that the collections have added.
const isOurs = ([name]) => name !== "_seq" && !name.startsWith("$")
const rows = ({ toArray }) => toArray.map((row) => Object.fromEntries(Object.entries(row).filter(isOurs)))

function say() {
  const { halls, seats } = db.collections
  console.log(JSON.stringify({ halls: rows(halls), seats: rows(seats) }))
}

await db.preload()
