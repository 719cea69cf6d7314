// pg_login.js HOST PORT ROLE PASSWORD DATABASE: one login, and who it is.

"use strict";
const { Client } = require("pg");

async function main() {
  const [host, port, user, password, database] = process.argv.slice(2);
  const client = new Client({ host, port: Number(port), user, password, database });
  await client.connect();
  const { rows } = await client.query("SELECT session_user::text AS role, current_database()::text AS name");
  await client.end();
  if (rows[0].role !== user || rows[0].name !== database) {
    throw new Error(`logged in as ${JSON.stringify(rows[0])}`);
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
