// pg_session.js HOST PORT: node-postgres, one client: start-up, values, named queries, transactions, errors, notices.
'use strict'
const { Client } = require('pg')
const { address, equal, fails, run } = require('./expect')

async function withClient(more, act) {
  const client = new Client(address(more))
  await client.connect()
  try {
    await act(client)
  } finally {
    await client.end()
  }
}

const value = async (client, query, values) => Object.values((await client.query(query, values)).rows[0])[0]

async function startup() {
  const more = { application_name: 'node client', options: '-c work_mem=6MB', statement_timeout: 54321 }
  await withClient(more, async (c) => {
    equal(await value(c, 'SHOW application_name'), 'node client', 'application_name')
    equal(await value(c, 'SHOW work_mem'), '6MB', 'work_mem from options')
    equal(await value(c, 'SHOW statement_timeout'), '54321ms', 'statement_timeout from the start-up packet')
  })
}

async function values() {
  await withClient({}, async (c) => {
    const result = await c.query('SELECT g AS i, g::text AS t FROM generate_series(1, 5000) g')
    equal(result.rows.length, 5000, 'rows')
    equal(result.rows[4999], { i: 5000, t: '5000' }, 'the last row')
    const date = new Date('2024-02-29T01:02:03.000Z')
    const given = ['ü\'"\\', 42, true, null, Buffer.from([0, 255]), date, [1, 2], { a: 1 }]
    const sql = 'SELECT $1::text a, $2::int b, $3::bool c, $4::text d, $5::bytea e, $6::timestamptz f, $7::int[] g, $8::json h'
    equal(Object.values((await c.query(sql, given)).rows[0]), given, 'parameters')
    const several = await c.query('SELECT 1 AS a; SELECT 2 AS b')
    equal(several.map((r) => r.rows[0]), [{ a: 1 }, { b: 2 }], 'two statements in one simple query')
    // node-postgres queues these and sends one after the other.
    const queued = await Promise.all(Array.from({ length: 200 }, (_, i) => value(c, 'SELECT $1::int AS v', [i])))
    equal(queued, Array.from({ length: 200 }, (_, i) => i), 'queued queries')
  })
}

async function named() {
  const clients = []
  for (let i = 0; i < 8; i++) {
    clients.push(new Client(address()))
    await clients[i].connect()
  }
  // The same names, with another text in each client.
  for (let turn = 0; turn < 40; turn++) {
    const answers = clients.map((c, i) => value(c, { name: `named ${turn % 4}`, text: `SELECT ${i} * 100 + ${turn % 4} * 10000 + $1::int AS v`, values: [turn] }))
    equal(await Promise.all(answers), clients.map((_, i) => i * 100 + (turn % 4) * 10000 + turn), `named queries, turn ${turn}`)
  }
  const [c] = clients
  const division = (by) => c.query({ name: 'division', text: 'SELECT 10 / $1::int AS v', values: [by] })
  equal((await division(5)).rows, [{ v: 2 }], 'a named query')
  await fails('22012', 'its error', division(0))
  equal((await division(2)).rows, [{ v: 5 }], 'it after an error')
  await Promise.all(clients.map((client) => client.end()))
}

async function transactions() {
  await withClient({}, async (c) => {
    await c.query('BEGIN')
    await c.query('CREATE TEMP TABLE node_t (i int PRIMARY KEY) ON COMMIT DROP')
    await c.query('INSERT INTO node_t SELECT generate_series(1, $1::int)', [10])
    await c.query('SAVEPOINT s')
    const error = await fails('23505', 'a duplicate', c.query('INSERT INTO node_t VALUES (1)'))
    equal(error.constraint, 'node_t_pkey', 'the constraint of the error')
    await fails('25P02', 'in a failed transaction', c.query('SELECT 1'))
    await c.query('ROLLBACK TO s')
    equal(await value(c, 'SELECT sum(i)::int FROM node_t'), 55, 'after a rollback to a savepoint')
    await c.query('COMMIT')
    await fails('42P01', 'a table that was dropped on commit', c.query('SELECT * FROM node_t'))
    equal(await value(c, 'SELECT 7'), 7, 'after an error')
    const heard = []
    c.on('notice', (notice) => heard.push(notice.message))
    await c.query("DO $$ BEGIN FOR i IN 1..50 LOOP RAISE NOTICE 'n%', i; END LOOP; END $$")
    equal(heard, Array.from({ length: 50 }, (_, i) => `n${i + 1}`), 'notices')
  })
}

run(async () => {
  await startup()
  await values()
  await named()
  await transactions()
})
