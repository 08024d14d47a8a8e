-- Puts a run that lost its worker, or its wake-up, back where it is found. Conditional on what the sweeper saw: a run
-- that somebody has claimed, renewed or ended since is left alone. A run that waits for its background tasks, for as long
-- as it may, goes on; a task that is woken and has not been claimed leaves its places to others meanwhile.
--
-- KEYS 1 run  2 leases  3 wakeups
-- ARGV 1 run id  2 token of the expired lease, or '' for a lost wake-up  3 ms until the wake-up counts as lost again
--      4 prefix of the status indexes
-- Returns 1 when the run is to be dispatched, else 0
local run, run_id, token = KEYS[1], ARGV[1], ARGV[2]
local now = now_ms()
local record = redis.call('HMGET', run, 'status', 'token', 'wakes')
local status = record[1]
if token ~= '' then
  local expiry = redis.call('ZSCORE', KEYS[2], run_id .. ':' .. token)
  if not expiry or tonumber(expiry) > now then
    return 0
  end
  redis.call('ZREM', KEYS[2], run_id .. ':' .. token)
  if status ~= 'running' or record[2] ~= token then
    return 0
  end
  redis.call('HDEL', run, 'owner', 'nonce')
  redis.call('HSET', run, 'lostAt', expiry)
  move(run, ARGV[4], run_id, 'running', 'queued')
else
  local due = redis.call('ZSCORE', KEYS[3], run_id)
  if not due or tonumber(due) > now then
    return 0
  end
  if status == 'suspended' and tonumber(redis.call('HGET', run, 'idleUntil') or '1e18') <= now then
    redis.call('HDEL', run, 'reason', 'idleUntil')
    redis.call('HSET', run, 'idledOut', '1')
    move(run, ARGV[4], run_id, 'suspended', 'queued')
  elseif status ~= 'queued' then
    redis.call('ZREM', KEYS[3], run_id)
    return 0
  else
    pass_on(run, run_id) -- it may have been woken for a place that nobody takes: its queue may have no worker
  end
end
-- A run that waits in a long queue is woken again and again, but ever more seldom.
local wakes = tonumber(record[3] or '0')
redis.call('HSET', run, 'wakes', int(wakes + 1))
redis.call('ZADD', KEYS[3], int(now + tonumber(ARGV[3]) * 2 ^ math.min(wakes, 6)), run_id)
return 1
