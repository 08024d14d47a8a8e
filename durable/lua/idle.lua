-- Lets a run go on when its background tasks end after its turn, and wait for them for at least so long. One that waits
-- for them already waits for so long from now on. The longest that anybody wants counts.
--
-- KEYS 1 run  2 wakeups
-- ARGV 1 run id  2 ms
-- Returns 'set' | 'ended' | 'unknown'
local run = KEYS[1]
local record = redis.call('HMGET', run, 'status', 'maxIdle', 'idleUntil')
local status = record[1]
if not status then
  return 'unknown'
end
if status == 'completed' or status == 'failed' or status == 'cancelled' then
  return 'ended'
end
redis.call('HSET', run, 'maxIdle', int(math.max(tonumber(ARGV[2]), tonumber(record[2] or '0'))))
local due = now_ms() + tonumber(ARGV[2])
if status == 'suspended' and record[3] and due > tonumber(record[3]) then
  redis.call('HSET', run, 'idleUntil', int(due))
  redis.call('ZADD', KEYS[2], int(due), ARGV[1])
end
return 'set'
