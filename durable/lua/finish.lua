-- Ends a run: its last chunks and its terminal state in one step, fenced and once like `append`.
-- A cancel that was requested before wins over completing or failing: the caller then ends the run as cancelled.
--
-- KEYS 1 run  2 log  3 request  4 messages  5 tombstone  6 leases
-- ARGV 1 channel  2 token  3 writer  4 batch number  5 count  6 bodies  7 run id  8 completed | failed | cancelled
--      9 prefix of the status indexes  10 tombstone seconds  11 messages JSON or ''  12… field, value, … of the record
-- Returns {'written' | 'seen', first seq, last seq} | {'fenced'} | {'gap'} | {'cancel'}
local run, run_id, token, status = KEYS[1], ARGV[7], ARGV[2], ARGV[8]
local verdict, first, last = judge(run, ARGV[3], ARGV[4])
if verdict == 'seen' then
  return {'seen', first, last}
end
local record = redis.call('HMGET', run, 'status', 'token', 'cancelRequested')
if record[1] ~= 'running' or record[2] ~= token then
  return {'fenced'}
end
if verdict == 'gap' then
  return {'gap'}
end
if record[3] and status ~= 'cancelled' then
  return {'cancel'}
end
first, last = write(run, KEYS[2], ARGV[1], token, ARGV[5], ARGV[6])
remember(run, ARGV[3], ARGV[4], first, last)
for i = 12, #ARGV, 2 do
  redis.call('HSET', run, ARGV[i], ARGV[i + 1])
end
if ARGV[11] ~= '' then
  redis.call('SET', KEYS[4], ARGV[11])
end
redis.call('ZREM', KEYS[6], run_id .. ':' .. token)
close(run, KEYS[2], KEYS[3], KEYS[4], KEYS[5], ARGV[9], run_id, 'running', status, ARGV[10])
return {'written', first, last}
