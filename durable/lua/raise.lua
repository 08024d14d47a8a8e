-- Raises the budgets of a run that is suspended because it reached one, and wakes it. The same again changes nothing,
-- also when another has raised them since: the last ones are remembered.
--
-- KEYS 1 run  2 log  3 wakeups
-- ARGV 1 channel  2 run id  3 token of the attempt whose use was looked at  4 body of the chunk that tells of it
--      5 tokens or ''  6 seconds or ''  7 prefix of the status indexes  8 ms until a lost wake-up is repeated
--      9 how many are remembered
-- Returns 'raised' | 'same' | 'changed' | 'other', when it is not suspended so | 'ended' | 'unknown'
local run, run_id = KEYS[1], ARGV[2]
local record = redis.call('HMGET', run, 'status', 'reason', 'token', 'raised')
local status, asked = record[1], ARGV[5] .. ' ' .. ARGV[6]
local before, known = {}, false
for one in string.gmatch(record[4] or '', '[^;]+') do
  known = known or one == asked
  before[#before + 1] = one
end
if not status then
  return 'unknown'
end
if status ~= 'suspended' or record[2] ~= 'budget_reached' then
  if known then
    return 'same'
  end
  local ended = status == 'completed' or status == 'failed' or status == 'cancelled'
  return ended and 'ended' or 'other'
end
if record[3] ~= ARGV[3] then
  return 'changed'
end
for field, value in pairs({maxTokens = ARGV[5], maxSeconds = ARGV[6]}) do
  if value ~= '' then
    redis.call('HSET', run, field, value)
  end
end
before[#before + 1] = asked
redis.call('HSET', run, 'raised', table.concat(before, ';', math.max(1, #before - tonumber(ARGV[9]) + 1)))
redis.call('HDEL', run, 'reason', 'budget')
write(run, KEYS[2], ARGV[1], '0', 1, ARGV[4])
redis.call('ZADD', KEYS[3], int(now_ms() + tonumber(ARGV[8])), run_id)
move(run, ARGV[7], run_id, 'suspended', 'queued')
return 'raised'
