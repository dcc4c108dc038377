// Emmett at the other end of a pipe: a command a line in, an answer a line out, both JSON.
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
  process.stdout.write(`${JSON.stringify(answer ?? null)}\n`);
}
await peer.close();
process.exit(0);
