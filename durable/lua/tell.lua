-- Leaves a message for the model of a run, once. A run that is executed is told of it, and one whose turn has ended, and
-- that waits for its background tasks, is woken; any other has it when it goes on. A run does not complete before its
-- model was told.
--
-- KEYS 1 run  2 ledger  3 calls  4 wakeups
-- ARGV 1 run id  2 message id  3 hash of the message  4 the message, as a JSON object  5 prefix of its name in the ledger
--      6 prefix of the status indexes  7 ms until a lost wake-up is repeated  8 channel of nudges
-- Returns {'told', status of the run before, '1' if it was woken} | {'same'} | {'other'}, of this id | {'ended'}
--      | {'task'}, it has no model | {'unknown'}
local run, run_id, id = KEYS[1], ARGV[1], 'm:' .. ARGV[2]
local record = redis.call('HMGET', run, 'status', 'idleUntil', 'kind', 'cancelRequested')
local status = record[1]
if not status then
  return {'unknown'}
end
if record[3] == 'task' then
  return {'task'}
end
local known = redis.call('HGET', KEYS[3], id)
if known then
  return {known == ARGV[3] and 'same' or 'other'}
end
if status == 'completed' or status == 'failed' or status == 'cancelled' or record[4] then
  return {'ended'}
end
local now, number = now_ms(), redis.call('HINCRBY', run, 'decisions', 1)
redis.call('HINCRBY', run, 'messages', 1)
redis.call('HSET', KEYS[3], id, ARGV[3])
local name = string.gsub(ARGV[5], '^0!0:', '0!' .. int(number) .. ':')
redis.call('HSET', KEYS[2], name, string.sub(ARGV[4], 1, -2) .. ',"at":' .. int(now) .. '}')
if status == 'running' then
  redis.call('PUBLISH', ARGV[8], 'decided ' .. run_id)
elseif status == 'suspended' and record[2] then
  redis.call('HDEL', run, 'reason', 'idledOut')
  redis.call('ZADD', KEYS[4], int(now + tonumber(ARGV[7])), run_id)
  move(run, ARGV[6], run_id, 'suspended', 'queued')
  return {'told', status, '1'}
end
return {'told', status, '0'}
