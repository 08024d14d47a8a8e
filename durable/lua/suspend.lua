-- Lets a run wait for somebody outside: it gives up its lease, and nobody executes it until it is woken. Refused when a
-- decision came that this attempt has not seen, so that no wake-up is lost; and when nobody was asked anything.
--
-- KEYS 1 run  2 leases  3 log  4 calls
-- ARGV 1 run id  2 token  3 count of decisions that this attempt has seen  4 prefix of the status indexes
--      5 channel  6 count of chunks that tell of it, may be 0  7 their bodies, joined by newlines
--      8 '1' when it waits for the answer to a call  9… field, value, … of the record
--      `idleMs` among the fields: ms after which it is woken by itself
-- Returns 'suspended' | 'fenced' | 'decided' | 'cancel' | 'unasked', when it would wait for ever
local run, run_id, token = KEYS[1], ARGV[1], ARGV[2]
local record = redis.call('HMGET', run, 'status', 'token', 'cancelRequested', 'decisions')
if record[1] == 'suspended' and record[2] == token then
  return 'suspended' -- the same request, sent again
end
if record[1] ~= 'running' or record[2] ~= token then
  return 'fenced'
end
if record[3] then
  return 'cancel'
end
if tonumber(record[4] or '0') ~= tonumber(ARGV[3]) then
  return 'decided'
end
if ARGV[8] == '1' then
  local asked = false
  for _, field in ipairs(redis.call('HKEYS', KEYS[4])) do
    if string.sub(field, 1, 2) == 's:' and string.sub(redis.call('HGET', KEYS[4], field), 1, 8) == 'pending ' then
      asked = true
      break
    end
  end
  if not asked then
    return 'unasked'
  end
end
redis.call('ZREM', KEYS[2], run_id .. ':' .. token)
redis.call('HDEL', run, 'owner', 'nonce', 'retriesUsed', 'lastError')
redis.call('HSET', run, 'claims', '0')
spend(run, true)
write(run, KEYS[3], ARGV[5], token, ARGV[6], ARGV[7])
for i = 9, #ARGV, 2 do
  redis.call('HSET', run, ARGV[i], ARGV[i + 1])
end
report(run, run_id)
local idle = redis.call('HGET', run, 'idleMs')
if idle then
  local due = int(now_ms() + tonumber(idle))
  redis.call('HDEL', run, 'idleMs')
  redis.call('HSET', run, 'idleUntil', due)
  redis.call('ZADD', root_of(run, run_id) .. ':wakeups', due, run_id)
end
share(run, run_id)
move(run, ARGV[4], run_id, 'running', 'suspended')
redis.call('PUBLISH', ARGV[5], 'suspended') -- whoever follows looks: there may be no chunk that tells of it
local parent = redis.call('HGET', run, 'parentRunId')
if parent then
  redis.call('PUBLISH', run_of(run, run_id, parent) .. ':live', 'suspended') -- that one may wait for nothing else
end
return 'suspended'
