// pg_listen.js HOST PORT SERVER_PORT: a client that only listens, while another notifies at the server.

"use strict";
const { Client } = require("pg");

async function main() {
  const [host, port, serverPort] = process.argv.slice(2);
  const at = (port) => new Client({ host, port: Number(port), user: "postgres", database: "postgres" });
  const [client, notifier] = [at(port), at(serverPort)];
  await client.connect();
  await notifier.connect();
  const heard = new Promise((resolve) => client.on("notification", resolve));
  await client.query('LISTEN "News"');
  const { rows } = await client.query("SELECT 1 AS one");
  if (rows[0].one !== 1) throw new Error(JSON.stringify(rows));
  await notifier.query("SELECT pg_notify('News', 'from node')");
  const { channel, payload } = await heard;
  if (channel !== "News" || payload !== "from node") throw new Error(`${channel} ${payload}`);
  await client.query("UNLISTEN *");
  await client.end();
  await notifier.end();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
