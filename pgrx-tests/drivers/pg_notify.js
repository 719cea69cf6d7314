// pg_notify.js HOST PORT: node-postgres: notifications while a client is idle, its own, and none after UNLISTEN.
'use strict'
const { Client } = require('pg')
const { address, equal, run } = require('./expect')

async function listens() {
  const [listener, notifier] = [new Client(address({})), new Client(address({}))]
  await Promise.all([listener.connect(), notifier.connect()])
  const got = []
  let come = () => {}
  listener.on('notification', (n) => {
    got.push(`${n.channel} ${n.payload} ${n.processId === notifier.processID}`)
    come()
  })
  const until = async (count) => {
    while (got.length < count) await new Promise((resolve) => { come = resolve })
  }
  await listener.query('LISTEN news')
  for (const payload of ['one', 'two']) await notifier.query('SELECT pg_notify($1, $2)', ['news', payload])
  await until(2)
  await listener.query("NOTIFY news, 'own'")
  equal(got, ['news one true', 'news two true', 'news own false'], 'what has come')
  await listener.query('UNLISTEN news')
  await notifier.query("NOTIFY news, 'too late'")
  await listener.query('SELECT 1')
  equal(got.length, 3, 'after UNLISTEN')
  await Promise.all([listener.end(), notifier.end()])
}

run(listens)
