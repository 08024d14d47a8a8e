-- Cancels a run. One that nobody executes, also because its lease has run out, ends here and now; one that is being
-- executed is told to end. Whoever claims it at the same moment comes before (then it is told) or after (it has ended).
--
-- KEYS 1 run  2 log  3 checkpoints  4 ledger  5 request  6 tombstone  7 leases  8 wakeups
--      9 calls  10 pending  11 deadlines
-- ARGV 1 channel  2 run id  3 count  4 bodies of the last chunks  5 prefix of the status indexes  6 tombstone seconds
--      7 reason, as JSON  8 channel of nudges  9 last seq at which the bodies' usage was right  10 that usage, or ''
--      11 what was recorded when the bodies were made of a cancel that was requested before, or '': that one stands
--      12… field, value, … of the record
-- Returns 'cancelled' | 'requested' | 'already' | 'ended' | 'unknown' | 'changed'
local run, run_id = KEYS[1], ARGV[2]
local record = redis.call('HMGET', run, 'status', 'token', 'cancelRequested')
local status, token = record[1], record[2]
if not status then
  return 'unknown'
end
if status == 'cancelled' then
  return 'already'
end
if status == 'completed' or status == 'failed' then
  return 'ended'
end
if status == 'running' then
  local expiry = redis.call('ZSCORE', KEYS[7], run_id .. ':' .. token)
  if expiry and tonumber(expiry) > now_ms() then
    redis.call('HSETNX', run, 'cancelRequested', ARGV[7])
    redis.call('PUBLISH', ARGV[8], 'cancel ' .. run_id)
    return 'requested'
  end
end
if redis.call('HGET', run, 'lastSeq') ~= ARGV[9] or (record[3] or '') ~= ARGV[11] then
  return 'changed'
end
-- Whoever lost this lease and comes back is refused by the run's status; so its attempt stays the last one.
redis.call('ZREM', KEYS[7], run_id .. ':' .. token)
if ARGV[10] ~= '' then
  redis.call('HSET', run, 'usage', ARGV[10])
end
for i = 12, #ARGV, 2 do
  redis.call('HSET', run, ARGV[i], ARGV[i + 1])
end
redis.call('HSETNX', run, 'cancelRequested', ARGV[7])
redis.call('HDEL', run, 'reason')
redis.call('ZREM', KEYS[8], run_id)
watch(run, 'cancelled')
write(run, KEYS[2], ARGV[1], '0', ARGV[3], ARGV[4])
close({run, KEYS[2], KEYS[5], KEYS[3], KEYS[4], KEYS[9]}, KEYS[6], KEYS[10], KEYS[11], ARGV[5], run_id, status, 'cancelled',
  ARGV[6])
return 'cancelled'
