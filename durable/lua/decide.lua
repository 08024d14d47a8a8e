-- Answers what is asked about a call, once: the first answer stands. Judged by the call's state, not by the run's; the
-- run is woken if it is suspended. What was asked about the call before, or is asked next, is another question.
--
-- KEYS 1 run  2 log  3 ledger  4 calls  5 pending  6 deadlines  7 wakeups
-- ARGV 1 channel  2 run id  3 call  4 'step round' of the question  5 hash of the answer
--      6 the answer, as a JSON object  7 field of the ledger  8 body of the chunk that tells of it
--      9 prefix of the status indexes  10 ms until a lost wake-up is repeated  11 channel of nudges
--      12 '1' when only a deadline that has passed may answer so  13 what callers are told of it, as JSON
--      14 how many answers the run tells of  15 token of the attempt whose own code answers so, or ''
-- Returns {'applied', status of the run before} | {'same'} | {'decided'} | {'unknown'} | {'ended'} | {'changed'}, when the
--      call is asked something else, or no deadline of it has passed | {'fenced'}
local run, calls, run_id, call = KEYS[1], KEYS[4], ARGV[2], ARGV[3]
local record = redis.call('HMGET', run, 'status', 'reason', 'token')
local status = record[1]
local state = redis.call('HGET', calls, 's:' .. call)
if not status or not state then
  return {'unknown'}
end
local how, place, hash = string.match(state, '^(%a+) (%d+ %d+) ?(%w*)')
if place ~= ARGV[4] then
  return {'changed'}
end
if how == 'decided' then
  return {hash == ARGV[5] and 'same' or 'decided'}
end
if status == 'completed' or status == 'failed' or status == 'cancelled' then
  return {'ended'}
end
if ARGV[15] ~= '' and (status ~= 'running' or record[3] ~= ARGV[15]) then
  return {'fenced'}
end
local now, member = now_ms(), run_id .. ':' .. call
if ARGV[12] == '1' then
  local due = redis.call('ZSCORE', KEYS[6], member)
  if not due or tonumber(due) > now then
    return {'changed'}
  end
end
local count = redis.call('HINCRBY', run, 'decisions', 1)
local seq = write(run, KEYS[2], ARGV[1], '0', 1, ARGV[8])
local answer = string.sub(ARGV[6], 1, -2) .. ',"at":' .. int(now) .. ',"seq":' .. int(seq) .. '}'
redis.call('HSET', calls, 's:' .. call, 'decided ' .. place .. ' ' .. ARGV[5], 'd:' .. call, answer)
redis.call('HSET', KEYS[3], ARGV[7], answer)
-- The next question about the call takes the place of this one; the run tells of its newest answers all the same.
redis.call('HSET', calls, 'a:' .. int(count % tonumber(ARGV[14])), int(count) .. ' ' .. int(now) .. ' ' .. ARGV[13])
redis.call('ZREM', KEYS[5], member)
redis.call('ZREM', KEYS[6], member)
redis.call('HSET', run, 'claims', '0')
-- One that has used up a budget waits for that to be raised, and finds the answer then.
if status == 'suspended' and record[2] ~= 'budget_reached' then
  redis.call('HDEL', run, 'reason')
  redis.call('ZADD', KEYS[7], int(now + tonumber(ARGV[10])), run_id)
  move(run, ARGV[9], run_id, 'suspended', 'queued')
elseif status == 'running' then
  redis.call('PUBLISH', ARGV[11], 'decided ' .. run_id)
end
return {'applied', status}
