-- Hands a run back to the queue. It is not held against the run's attempts.
--
-- KEYS 1 run  2 leases  3 wakeups
-- ARGV 1 run id  2 token  3 ms until a lost wake-up is repeated  4 prefix of the status indexes
--      5 '1' when nobody may claim it before that  6… field, value, … of the record
-- Returns 1, or 0 when the token is not the run's any more
local run, run_id, token = KEYS[1], ARGV[1], ARGV[2]
local record = redis.call('HMGET', run, 'status', 'token', 'cancelRequested')
if record[1] ~= 'running' or record[2] ~= token then
  return 0
end
redis.call('ZREM', KEYS[2], run_id .. ':' .. token)
spend(run, true)
local wait, held = tonumber(ARGV[3]), ARGV[5] == '1'
if held and record[3] then
  wait, held = 0, false -- it was told to end meanwhile: it need not wait for that
end
local due = int(now_ms() + wait)
redis.call('ZADD', KEYS[3], due, run_id)
if held then
  redis.call('HSET', run, 'notBefore', due)
end
for i = 6, #ARGV, 2 do
  redis.call('HSET', run, ARGV[i], ARGV[i + 1])
end
if tonumber(redis.call('HGET', run, 'claims') or '0') > 0 then
  redis.call('HINCRBY', run, 'claims', -1)
end
redis.call('HDEL', run, 'owner', 'nonce')
move(run, ARGV[4], run_id, 'running', 'queued')
return 1
