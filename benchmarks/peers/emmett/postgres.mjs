// Emmett on PostgreSQL: its store, its rebuild of a projection, its consumer.

import { randomUUID } from 'node:crypto';
import pg from 'pg';
import { rawSql, sql } from '@event-driven-io/dumbo';
import {
  getPostgreSQLEventStore,
  postgreSQLEventStoreConsumer,
  postgreSQLProjection,
  rebuildPostgreSQLProjections,
} from '@event-driven-io/emmett-postgresql';

const name = 'accounts';
const table = `CREATE TABLE IF NOT EXISTS accounts (
  account text PRIMARY KEY, owner text NOT NULL, balance bigint NOT NULL, entries bigint NOT NULL)`;

const write = {
  AccountOpened: (id, data) =>
    sql('INSERT INTO accounts VALUES (%L, %L, 0, 0)', id, data.owner),
  MoneyDeposited: (id, data) => add(id, data.amount),
  MoneyWithdrawn: (id, data) => add(id, -data.amount),
};
const add = (id, amount) =>
  sql(
    'UPDATE accounts SET balance = balance + %s, entries = entries + 1 WHERE account = %L',
    amount,
    id,
  );

const projection = postgreSQLProjection({
  name,
  canHandle: Object.keys(write),
  handle: (events, { execute }) =>
    execute.batchCommand(
      events.map(({ type, data, metadata }) => write[type](metadata.streamName.slice(8), data)),
    ),
  truncate: ({ execute }) => execute.command(rawSql('TRUNCATE accounts')),
});

export const open = async (url) => {
  const store = getPostgreSQLEventStore(url);
  await store.schema.migrate();
  const client = new pg.Client(url);
  await client.connect();
  await client.query(table);
  return {
    append: (stream, events, expectedStreamVersion) =>
      store.appendToStream(stream, events, { expectedStreamVersion }),
    load: async (stream, options) => (await store.aggregateStream(stream, options)).state,
    rebuild: async () => {
      // A rebuild goes on from a checkpoint that it finds: without one it starts at the beginning.
      await client.query('DELETE FROM emt_processors');
      const consumer = rebuildPostgreSQLProjections({
        connectionString: url,
        projections: [projection],
        pulling: { batchSize: 500, pullingFrequencyInMs: 0 },
      });
      await consumer.start();
      await consumer.close();
    },
    follow: async (received, pulling) => {
      const { rows } = await client.query(
        'SELECT coalesce(max(global_position), 0) AS last FROM emt_messages',
      );
      const consumer = postgreSQLEventStoreConsumer({ connectionString: url, pulling });
      consumer.reactor({
        processorId: `follower-${randomUUID()}`,
        startFrom: { lastCheckpoint: BigInt(rows[0].last) },
        eachMessage: received,
      });
      return { start: consumer.start, stop: consumer.close };
    },
    rows: async () => {
      const sums = 'count(*)::int, sum(balance)::int, sum(entries)::int';
      const result = await client.query({
        text: `SELECT ${sums} FROM accounts`,
        rowMode: 'array',
      });
      return result.rows[0];
    },
    close: async () => {
      await client.end();
      await store.close();
    },
  };
};
