-- Ends a run: its last chunks and its terminal state in one step, fenced and once like `append`.
-- A cancel that was requested before wins over completing or failing: the caller then ends the run as cancelled. A run
-- does not complete while a call is open, if that is asked for: nobody's answer is to be lost without a word.
--
-- KEYS 1 run  2 log  3 checkpoints  4 ledger  5 calls  6 pending  7 deadlines  8 request  9 tombstone  10 leases
-- ARGV 1 channel  2 token  3 writer  4 batch number  5 count  6 bodies  7 checkpoint or ''  8 run id
--      9 completed | failed | cancelled  10 prefix of the status indexes  11 tombstone seconds
--      12 '1' when no call may be open  13 how many messages its model was told, if one more keeps it from ending, or ''
--      14… field, value, … of the record
-- Returns {'written' | 'seen', first seq, last seq} | {'fenced'} | {'gap'} | {'cancel'} | {'open'} | {'unheard'}

-- Whether a call waits for an answer, or was given one and has not been made. A goal that was paused is no tool's call.
local function any_open(ledger, calls)
  local found = redis.call('HGETALL', calls)
  for i = 1, #found, 2 do
    local call, how, step, round = string.sub(found[i], 3), string.match(found[i + 1], '^(%a+) (%d+) (%d+)')
    if string.sub(found[i], 1, 2) == 's:' then
      local answer = how == 'decided' and redis.call('HGET', calls, 'd:' .. call) or ''
      local verb = string.match(answer, '^{"kind":"(%a+)"')
      local made = step .. '+' .. int(tonumber(round) + 1) .. ':' .. call
      local makes = (verb == 'approve' or verb == 'resume') and string.sub(call, 1, 8) ~= 'durable-'
      if how == 'pending' or (makes and redis.call('HEXISTS', ledger, made) == 0) then
        return true
      end
    end
  end
  return false
end

local run, token, run_id, status = KEYS[1], ARGV[2], ARGV[8], ARGV[9]
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
if ARGV[12] == '1' and redis.call('HEXISTS', run, 'asked') == 1 and any_open(KEYS[4], KEYS[5]) then
  return {'open'}
end
if ARGV[13] ~= '' and tonumber(redis.call('HGET', run, 'messages') or '0') > tonumber(ARGV[13]) then
  return {'unheard'}
end
for i = 14, #ARGV, 2 do
  redis.call('HSET', run, ARGV[i], ARGV[i + 1])
end
watch(run, status)
first, last = write(run, KEYS[2], ARGV[1], token, ARGV[5], ARGV[6])
keep(run, KEYS[3], last, '1', ARGV[7])
remember(run, ARGV[3], ARGV[4], first, last)
spend(run, true)
if ARGV[7] ~= '' then
  redis.call('HSET', run, 'endEntry', '1') -- the last entry tells how the run ended: a retry starts from before it
end
redis.call('ZREM', KEYS[10], run_id .. ':' .. token)
close({run, KEYS[2], KEYS[8], KEYS[3], KEYS[4], KEYS[5]}, KEYS[9], KEYS[6], KEYS[7], ARGV[10], run_id, 'running', status,
  ARGV[11])
return {'written', first, last}
