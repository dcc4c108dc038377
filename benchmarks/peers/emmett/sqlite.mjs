// Emmett on SQLite: its store and its consumer. It has no rebuild for SQLite, so the rows and the
// checkpoint are deleted and a consumer projects everything again.

import { randomUUID } from 'node:crypto';
import {
  getSQLiteEventStore,
  sqliteConnection,
  sqliteRawSQLProjection,
} from '@event-driven-io/emmett-sqlite';

const name = 'accounts';
const table = `CREATE TABLE IF NOT EXISTS accounts (
  account TEXT PRIMARY KEY, owner TEXT NOT NULL, balance INTEGER NOT NULL,
  entries INTEGER NOT NULL)`;

const text = (value) => `'${value.replaceAll("'", "''")}'`;
const add = (id, amount) => `UPDATE accounts
  SET balance = balance + ${amount}, entries = entries + 1 WHERE account = ${text(id)}`;
const write = {
  AccountOpened: (id, data) => `INSERT INTO accounts VALUES (${text(id)}, ${text(data.owner)}, 0, 0)`,
  MoneyDeposited: (id, data) => add(id, data.amount),
  MoneyWithdrawn: (id, data) => add(id, -data.amount),
};

const projection = {
  name,
  ...sqliteRawSQLProjection({
    canHandle: Object.keys(write),
    evolve: ({ type, data, metadata }) => write[type](metadata.streamName.slice(8), data),
  }),
};

export const open = async (fileName) => {
  const connection = sqliteConnection({ fileName });
  const store = getSQLiteEventStore({
    fileName,
    connectionOptions: { singleton: true, connection },
  });
  await store.schema.migrate();
  await connection.command(table);
  return {
    append: (stream, events, expectedStreamVersion) =>
      store.appendToStream(stream, events, { expectedStreamVersion }),
    load: async (stream, options) => (await store.aggregateStream(stream, options)).state,
    rebuild: async () => {
      await connection.command('DELETE FROM accounts');
      await connection.command('DELETE FROM emt_processors');
      const end = await connection.querySingle('SELECT max(global_position) AS last FROM emt_messages');
      const consumer = store.consumer({ pulling: { batchSize: 5000, pullingFrequencyInMs: 0 } });
      consumer.processor({
        projection,
        stopAfter: ({ metadata }) => metadata.globalPosition === BigInt(end.last),
      });
      await consumer.start();
    },
    follow: async (received, pulling) => {
      const { last } = await connection.querySingle(
        'SELECT coalesce(max(global_position), 0) AS last FROM emt_messages',
      );
      // A connection of its own: on the writer's it would get into the writer's transactions.
      const own = sqliteConnection({ fileName });
      const reader = getSQLiteEventStore({
        fileName,
        connectionOptions: { singleton: true, connection: own },
        schema: { autoMigration: 'None' },
      });
      const consumer = reader.consumer({ pulling });
      consumer.processor({
        processorId: `follower-${randomUUID()}`,
        startFrom: { globalPosition: BigInt(last) },
        eachMessage: received,
      });
      const stop = async () => {
        await consumer.stop();
        own.close();
      };
      return { start: consumer.start, stop };
    },
    rows: async () =>
      Object.values(
        await connection.querySingle('SELECT count(*), sum(balance), sum(entries) FROM accounts'),
      ),
    close: async () => connection.close(),
  };
};
