// Drives Mastra's own client. A line of JSON on stdin is an order, each line on stdout tells what came of one; many may be
// under way at once.
//
//   {id, url, agent?, options?, method, args, reconnect?}  call a method of an agent, or without one of the client
//   {of: id, do: "abort" | "unsubscribe" | "abortThread"}  do something about an order that is under way
//
// Events of an order: opened {status, headers}, chunk {chunk}, executed {args}, complaint {text}, did {value}, and at last
// ended {value?} or failed {error}. In arguments {"$date": text} is a date, {"$returns": value} and {"$throws": text} are functions.
import { AsyncLocalStorage } from 'node:async_hooks'
import { createInterface } from 'node:readline'

import { MastraClient } from '@mastra/client-js'

const order = new AsyncLocalStorage()
const underWay = new Map()

const print = (event) => process.stdout.write(`${JSON.stringify(event)}\n`)
const tell = (event, content = {}) => print({ id: order.getStore(), event, ...content })

console.error = (...words) => tell('complaint', { text: words.map(String).join(' ') })

const revive = (_key, value) => {
  if (value?.$date !== undefined) return new Date(value.$date)
  if (value?.$returns === undefined && value?.$throws === undefined) return value
  return async (args) => {
    tell('executed', { args })
    if (value.$throws !== undefined) throw new Error(value.$throws)
    return value.$returns
  }
}

const read = async (answer, reconnect) => {
  const onChunk = async (chunk) => tell('chunk', { chunk })
  if (answer instanceof Response) {
    tell('opened', { status: answer.status, headers: Object.fromEntries(answer.headers) })
    await answer.processDataStream({ onChunk, reconnect })
  } else if (answer instanceof ReadableStream) {
    tell('opened')
    for await (const chunk of answer) await onChunk(chunk)
  } else return answer
}

const obey = async ({ id, url, agent, options, method, args, reconnect }) => {
  const abort = new AbortController()
  const client = new MastraClient({ baseUrl: url, abortSignal: abort.signal, ...options })
  const called = { abort }
  underWay.set(id, called)
  try {
    called.answer = await (agent === undefined ? client : client.getAgent(agent))[method](...args)
    tell('ended', { value: await read(called.answer, reconnect) })
  } catch (error) {
    const { name, message, status, body } = error
    tell('failed', { error: { name, message, status, body } })
  } finally {
    underWay.delete(id)
  }
}

const interfere = async ({ of, do: what }) => {
  const called = underWay.get(of)
  if (called === undefined) return
  if (what === 'abort') called.abort.abort()
  if (what === 'unsubscribe') called.answer.unsubscribe()
  if (what === 'abortThread') tell('did', { value: await called.answer.abort() })
}

for await (const line of createInterface({ input: process.stdin })) {
  const { id, of } = JSON.parse(line)
  order.run(id ?? of, () => {
    const said = JSON.parse(line, revive)
    return said.of === undefined ? obey(said) : interfere(said)
  })
}
process.exit()
