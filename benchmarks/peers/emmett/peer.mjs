// Emmett at the other end of a pipe: a command a line in, an answer a line out, both JSON. An answer
// begins with "=", since Emmett itself writes to the same place when something goes wrong.
//
//     node peer.mjs postgres|sqlite TARGET

import { randomUUID } from 'node:crypto';
import { createInterface } from 'node:readline';

const [kind, target] = process.argv.slice(2);
const { open } = await import(`./${kind}.mjs`);
const peer = await open(target);
const own = `account-${randomUUID()}`;
let version = 0n;
let arrived = [];
let consumer;

const clock = () => Number(process.hrtime.bigint()) / 1e6; // one clock for all processes
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// The state of an account.
const initialState = () => ({ owner: '', balance: 0, entries: 0, version: 0 });
const evolve = (state, { type, data }) => {
  state.version += 1;
  if (type === 'AccountOpened') {
    state.owner = data.owner;
  } else {
    state.balance += type === 'MoneyDeposited' ? data.amount : -data.amount;
    state.entries += 1;
  }
  return state;
};

const commands = {
  ready: () => null,
  // Accounts side by side: in each turn their version, and their numbers in order.
  fill: async ({ turns, opened, deposited, each }) => {
    for (const [version, numbers] of turns) {
      const events = Array.from({ length: each }, () => deposited);
      if (version === 0) events[0] = opened;
      for (const number of numbers) {
        await peer.append(`account-${number}`, events, BigInt(version));
      }
    }
  },
  rebuild: () => peer.rebuild(),
  rows: () => peer.rows(),
  // Follow the log from its end.
  follow: async ({ pulling }) => {
    arrived = [];
    consumer = await peer.follow(() => arrived.push(clock()), pulling);
    void consumer.start();
  },
  arrived: async ({ count }) => {
    while (arrived.length < count) await pause(5);
    return arrived;
  },
  stop: () => consumer.stop(),
  // So many commits of so many events each, on a stream of their own.
  save: async ({ stream, commits, deposited, each, version }) => {
    const events = Array.from({ length: each }, () => deposited);
    for (let number = 0; number < commits; number += 1) {
      await peer.append(stream, events, BigInt(version + number * each));
    }
  },
  // Load each of the streams, and with `deposited` append it there.
  load: async ({ streams, deposited }) => {
    let state;
    for (const stream of streams) {
      state = await peer.load(stream, { evolve, initialState });
      if (deposited) await peer.append(stream, [deposited], BigInt(state.version));
    }
    return state.entries;
  },
  // Append so many events, one a commit, and say when each was begun.
  append: async ({ count, every, deposited }) => {
    const begun = [];
    const start = clock();
    for (let number = 0; number < count; number += 1) {
      const early = start + number * every - clock();
      if (early > 0) await pause(early);
      begun.push(clock());
      await peer.append(own, [deposited], version);
      version += 1n;
    }
    return begun;
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  const answer = await commands[command.do](command);
  process.stdout.write(`=${JSON.stringify(answer ?? null)}\n`);
}
await peer.close();
process.exit(0);
