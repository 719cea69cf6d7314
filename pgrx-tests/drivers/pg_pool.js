// pg_pool.js HOST PORT: a node-postgres Pool of 50 with 1000 queries, some in transactions, some failing; and clients with
// settings of their own.
'use strict'
const { Client, Pool } = require('pg')
const { address, equal, fails, run } = require('./expect')

const COUNT = 1000

async function pool() {
  const pool = new Pool(address({ max: 50 }))
  let clients = 0
  pool.on('connect', () => clients++)
  pool.on('error', (error) => console.error(`an idle client of the pool: ${error.message}`))
  const one = async (i) => {
    if (i % 10 === 3) {
      await fails('22012', `query ${i}`, pool.query('SELECT 1 / ($1::int - $1::int)', [i]))
      return i
    }
    if (i % 10 === 7) {
      const client = await pool.connect()
      try {
        await client.query('BEGIN')
        await client.query("SELECT set_config('node.own', $1, true)", [`own ${i}`])
        const { rows } = await client.query("SELECT current_setting('node.own') AS own")
        equal(rows, [{ own: `own ${i}` }], `a setting of transaction ${i}`)
        await client.query('COMMIT')
      } finally {
        client.release()
      }
      return i
    }
    const named = { name: `by ${i % 5}`, text: `SELECT $1::int + ${i % 5} AS v`, values: [i] }
    return (await pool.query(named)).rows[0].v - (i % 5)
  }
  const got = await Promise.all(Array.from({ length: COUNT }, (_, i) => one(i)))
  equal(got, Array.from({ length: COUNT }, (_, i) => i), 'answers')
  equal(clients >= 50, true, `50 clients of the pool and some after errors: ${clients}`)
  await pool.end()
}

async function settings() {
  const one = async (number) => {
    const client = new Client(address({ application_name: `node ${number}` }))
    await client.connect()
    await client.query(`SET work_mem = '${number + 100}kB'`)
    for (let turn = 0; turn < 20; turn++) {
      const { rows } = await client.query("SELECT current_setting('work_mem') m, current_setting('application_name') a")
      equal(rows, [{ m: `${number + 100}kB`, a: `node ${number}` }], `settings of client ${number}, turn ${turn}`)
    }
    await client.end()
  }
  await Promise.all(Array.from({ length: 50 }, (_, number) => one(number)))
}

run(async () => {
  await pool()
  await settings()
})
