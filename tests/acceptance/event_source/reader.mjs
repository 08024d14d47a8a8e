// Reads one URL with EventSource and prints what happens, one JSON object a line. It ends when EventSource gives up.
import { EventSource } from 'eventsource'

// The package waits 3 seconds before it comes back; a test need not.
const setTimer = globalThis.setTimeout
globalThis.setTimeout = (callback, delay, ...rest) => setTimer(callback, Math.min(delay, 50), ...rest)

const print = (event) => process.stdout.write(`${JSON.stringify(event)}\n`)
const source = new EventSource(process.argv[2])

source.onopen = () => print({ event: 'open' })
source.onmessage = ({ lastEventId, data }) => print({ event: 'message', id: lastEventId, data })
source.onerror = ({ code }) => {
  const closed = source.readyState === EventSource.CLOSED
  print({ event: 'error', code, closed })
  // Time enough to come back once more, if it did; idle connections would keep the process for seconds.
  if (closed) setTimer(() => process.exit(), 250)
}
