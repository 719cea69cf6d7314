// What the scripts share: arguments, and a check that says what was wrong.
'use strict'
const { isDeepStrictEqual, inspect } = require('node:util')

const [host, port, ...rest] = process.argv.slice(2)
const address = (more = {}) => ({
  host, port: Number(port), user: 'postgres', database: 'postgres', connectionTimeoutMillis: 20000, ...more,
})

function fail(text) {
  throw new Error(text)
}

function equal(got, wanted, what) {
  if (!isDeepStrictEqual(got, wanted)) fail(`${what}: got ${inspect(got)}, wanted ${inspect(wanted)}`)
}

// The promise must be refused with this SQLSTATE; gives the error.
async function fails(code, what, promise) {
  let error = null
  try {
    await promise
  } catch (caught) {
    error = caught
  }
  if (!error) fail(`${what}: no error, wanted ${code}`)
  equal(error.code, code, `${what}: SQLSTATE of ${error.message}`)
  return error
}

function run(main) {
  main().then(
    () => console.log('ok'),
    (error) => {
      console.error(error.stack)
      process.exit(1)
    },
  )
}

module.exports = { address, equal, fail, fails, rest, run }
