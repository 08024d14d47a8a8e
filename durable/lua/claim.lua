-- Claims a run for an owner, with a token higher than any before. Repeating a claim with the same nonce finds it done.
--
-- KEYS 1 run  2 leases  3 wakeups
-- ARGV 1 run id  2 owner  3 nonce of this claim  4 lease, ms  5 prefix of the status indexes
--      6 claims without progress of which the last is made alone; '0' when the owner executes nothing else
--      7… agents that the owner has; any agent when there are none
-- Returns {'claimed', token, lastSeq, claims without progress} | {'held', ms left} | {'early', ms left} | {'unknown'} | {'foreign'}
--      | {'limited'}, when as many tasks are executed as may be: it is woken when there is a place
--      | {'suspended'} | {'behind'}, another run of its thread | {'ended', status} | {'alone'}, for a run that was lost before, at its last attempt
local run, leases, wakeups = KEYS[1], KEYS[2], KEYS[3]
local run_id, now = ARGV[1], now_ms()
local record =
  redis.call('HMGET', run, 'status', 'token', 'nonce', 'lastSeq', 'claims', 'notBefore', 'cancelRequested', 'behind')
local status, token = record[1], tonumber(record[2])
if not status then
  return {'unknown'}
end
if #ARGV > 6 then
  local agent, known = redis.call('HGET', run, 'agent'), false
  for i = 7, #ARGV do
    known = known or ARGV[i] == agent
  end
  if not known then
    return {'foreign'}
  end
end
if status == 'suspended' then
  return {'suspended'}
end
if status ~= 'queued' and status ~= 'running' then
  return {'ended', status}
end
if record[8] then
  return {'behind'}
end
local expiry
if status == 'running' then
  expiry = redis.call('ZSCORE', leases, run_id .. ':' .. int(token))
  if record[3] == ARGV[3] then
    return {'claimed', token, tonumber(record[4]), tonumber(record[5])}
  end
  if expiry and tonumber(expiry) > now then
    return {'held', tonumber(expiry) - now}
  end
elseif record[6] and tonumber(record[6]) > now then
  return {'early', tonumber(record[6]) - now}
end
local before, last = tonumber(record[5] or '0'), tonumber(ARGV[6] or '0')
-- A run that only has to be cancelled does nothing that could kill its process.
if before > 0 and before + 1 == last and not record[7] then
  return {'alone'}
end
local full, free = {}, {}
for _, limit in ipairs(limits_of(run, run_id)) do
  if redis.call('SISMEMBER', limit[1], run_id) == 0 then
    table.insert(redis.call('SCARD', limit[1]) >= limit[2] and full or free, limit[1])
  end
end
if #full > 0 and not record[7] then
  for _, places in ipairs(full) do
    redis.call('ZADD', places .. ':waiting', redis.call('HGET', run, 'createdAt'), run_id)
  end
  for _, places in ipairs(free) do
    offer(run, run_id, places) -- the place is not for this one
  end
  redis.call('ZREM', wakeups, run_id)
  return {'limited'}
end
for _, places in ipairs(free) do
  redis.call('SADD', places, run_id)
end
if status == 'running' then
  redis.call('ZREM', leases, run_id .. ':' .. int(token))
  redis.call('HSET', run, 'lostAt', expiry or int(now))
end

token = token + 1
redis.call('HSET', run, 'token', int(token), 'owner', ARGV[2], 'nonce', ARGV[3])
redis.call('HSETNX', run, 'startedAt', int(now))
if redis.call('HEXISTS', run, 'maxSeconds') == 1 then
  redis.call('HSET', run, 'executingSince', int(now)) -- what a lost attempt did after it last got on is not counted
end
local claims = redis.call('HINCRBY', run, 'claims', 1)
redis.call('ZADD', leases, int(now + tonumber(ARGV[4])), run_id .. ':' .. int(token))
redis.call('ZREM', wakeups, run_id)
-- Whatever the attempt before sends now is refused by its token: what it wrote last needs no more remembering.
redis.call('HDEL', run, 'wakes', 'notBefore', 'idleUntil', 'w:a' .. int(token - 1))
if status == 'running' then
  watch(run, status)
else
  move(run, ARGV[5], run_id, status, 'running')
end
return {'claimed', token, tonumber(redis.call('HGET', run, 'lastSeq')), claims}
