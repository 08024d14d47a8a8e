-- Creates a run, once: the same run id or idempotency key with the same request finds the run that is there.
--
-- KEYS 1 run  2 request  3 tombstone  4 index of all runs  5 index of the agent's runs  6 wakeups
--      7 idempotency key, or the run key again when there is none  8 checkpoints  9 ledger
--      10, 11, 12 checkpoints, ledger and record of the run to start from, if there is one  13, 14 its calls, and this run's
-- ARGV 1 run id  2 hash of the request  3 request JSON  4 ms until a lost wake-up is repeated
--      5 prefix of the status indexes  6… field, value, … of the record
-- A run of a thread (`threadId`, `resourceId` and `onBusy` among the fields) is the thread's live run, or waits for it.
-- Returns {'created' | 'exists' | 'conflict' | 'expired', run id, time of creation or ''} | {'foreign', thread id}, of
--      another resource | {'busy', live run, its status} | {'orphan'}, its parent is not executed by who starts it
--      | {'full', limit}, of a task that is not to wait for a place
-- A run that was created has a fourth part: 1 when it waits for a place under a limit, and is woken when there is one.
-- A run that another one starts has `parentRunId` and `parentToken` (which is not stored) among the fields; a task, too,
-- `limits` (`name=most …`) and `onLimit`.

-- The tasks of the old run go on for the new one, unless they do for another retry of it. What those came to that have
-- ended since is known.
local function adopt(run, run_id, old, old_id, known)
  for _, child_id in ipairs(redis.call('LRANGE', old .. ':children:order', 0, -1)) do
    local child = run_of(run, run_id, child_id)
    local record = redis.call('HMGET', child, 'outcome', 'parentCall', 'parentRunId')
    if record[1] then
      known[answer_of(record[2])] = record[1]
    elseif record[3] == old_id then
      redis.call('HSET', child, 'parentRunId', run_id)
      redis.call('HSET', run .. ':children', child_id, redis.call('HGET', old .. ':children', child_id))
      redis.call('HSET', run, 'begat', '1')
      redis.call('RPUSH', run .. ':children:order', child_id)
    end
  end
end

-- Whether a task of a call goes on for this run, or has done well.
local function goes_on(run, run_id, task, outcome)
  local record = redis.call('HMGET', run_of(run, run_id, task), 'status', 'cancelRequested', 'parentRunId')
  if outcome then
    return record[1] ~= 'cancelled' and not string.find(outcome, '"entry":{"kind":"raised"', 1, true)
  end
  return (record[1] == 'queued' or record[1] == 'running' or record[1] == 'suspended')
    and not record[2]
    and record[3] == run_id
end

local run, request, tombstone = KEYS[1], KEYS[2], KEYS[3]
local run_id, hash = ARGV[1], ARGV[2]

local function starts(value, with)
  return value and string.sub(value, 1, #with) == with
end

-- The names of the answer to a round of a call, and of the round after it, by the name of the round.
local function of_round(field)
  local step, round, call = string.match(field, '^(%d+)%+?(%d*):(.*)$')
  if not step then
    return '', ''
  end
  round = round == '' and '0' or round
  return step .. '!' .. round .. ':' .. call, step .. '+' .. int(tonumber(round) + 1) .. ':' .. call
end

-- What was decided of the calls that this run takes over stays decided, and is told of this run, too. So are messages
-- known whose model is this run's now: one that is sent again is the same.
local function inherit(theirs, ours)
  local found = redis.call('HGETALL', theirs)
  local function taken(step, round, call)
    return redis.call('HEXISTS', KEYS[9], step .. '!' .. round .. ':' .. call) == 1
  end
  for i = 1, #found, 2 do
    local kind, call, value = string.sub(found[i], 1, 2), string.sub(found[i], 3), found[i + 1]
    if kind == 's:' then
      local step, round = string.match(value, '^decided (%d+) (%d+) ')
      if step and taken(step, round, call) then
        for _, each in ipairs({'s:', 'c:', 't:', 'd:'}) do
          redis.call('HSET', ours, each .. call, redis.call('HGET', theirs, each .. call))
        end
      end
    elseif kind == 'a:' then
      local told = cjson.decode(string.match(value, '^%d+ %d+ (.*)$'))
      local step, round = string.match(told.questionId, '^(%d+)%.(%d+)$')
      if taken(step, round, told.toolCallId) then
        redis.call('HSET', ours, found[i], value)
        redis.call('HSET', run, 'asked', '1', 'decisions', redis.call('HGET', KEYS[12], 'decisions')) -- counted on from there
      end
    elseif kind == 'm:' then
      redis.call('HSET', ours, found[i], value)
      redis.call('HSET', run, 'decisions', redis.call('HGET', KEYS[12], 'decisions')) -- as above: it names the next one
    end
  end
end

if KEYS[7] ~= run then
  local known = redis.call('GET', KEYS[7])
  if known then
    local same, id = string.sub(known, 1, #hash) == hash, string.sub(known, #hash + 2)
    return {same and 'exists' or 'conflict', id}
  end
end

local existing = redis.call('HGET', run, 'requestHash')
if existing then
  return {existing == hash and 'exists' or 'conflict', run_id}
end
if redis.call('EXISTS', tombstone) == 1 then
  return {'expired', run_id}
end

local fields = {}
for i = 6, #ARGV, 2 do
  fields[ARGV[i]] = ARGV[i + 1]
end
local thread, live = fields.threadId and thread_of(run, run_id, fields.threadId), false
if thread then
  local known = redis.call('HMGET', thread, 'resource', 'live')
  if known[1] and known[1] ~= (fields.resourceId or '') then
    return {'foreign', fields.threadId}
  end
  local status = known[2] and redis.call('HGET', run_of(run, run_id, known[2]), 'status')
  live = status and known[2]
  if live and (fields.onBusy == 'reject' or status == 'suspended') then
    return {'busy', live, status}
  end
end

if fields.parentRunId then
  local parent = redis.call('HMGET', run_of(run, run_id, fields.parentRunId), 'status', 'token')
  if parent[1] ~= 'running' or parent[2] ~= fields.parentToken then
    return {'orphan', run_id}
  end
end
local places = {}
for name, most in string.gmatch((fields.onLimit or 'queue') ~= 'queue' and fields.limits or '', '(%S+)=(%d+)') do
  places[#places + 1] = root_of(run, run_id) .. ':limit:' .. name
  if redis.call('SCARD', places[#places]) >= tonumber(most) then
    return {'full', name}
  end
end

local now, waits = now_ms(), false
redis.call('HSET', run, 'status', 'queued', 'requestHash', hash, 'createdAt', int(now), 'token', '0', 'lastSeq', '0')
for i = 6, #ARGV, 2 do
  if ARGV[i] ~= 'parentToken' then
    redis.call('HSET', run, ARGV[i], ARGV[i + 1])
  end
end
if fields.parentRunId then
  local children = run_of(run, run_id, fields.parentRunId) .. ':children'
  redis.call('HSET', children, run_id, 'live')
  redis.call('HSET', run_of(run, run_id, fields.parentRunId), 'begat', '1')
  redis.call('RPUSH', children .. ':order', run_id)
end
for _, set in ipairs(places) do
  redis.call('SADD', set, run_id) -- a task that must not wait has its place from the beginning
end
for _, limit in ipairs(#places == 0 and limits_of(run, run_id) or {}) do
  if redis.call('SCARD', limit[1]) >= limit[2] then
    redis.call('ZADD', limit[1] .. ':waiting', int(now), run_id) -- as `claim` would: nobody need be woken for that
    waits = true
  end
end
redis.call('SET', request, ARGV[3])
if KEYS[10] then
  redis.call('COPY', KEYS[10], KEYS[8])
  redis.call('PERSIST', KEYS[8])
  if redis.call('HEXISTS', KEYS[12], 'endEntry') == 1 then
    redis.call('RPOP', KEYS[8])
  end
  local entries = redis.call('HGETALL', KEYS[11])
  local known, anew = {}, {}
  for i = 1, #entries, 2 do
    known[entries[i]] = entries[i + 1]
  end
  adopt(run, run_id, KEYS[12], fields.retryOf, known)
  for field, value in pairs(known) do
    -- A failure that ended the old run must not end the new one before it has begun; nobody can answer the calls for
    -- which the old one waited: the new one asks again. What the agent's own handlers let go on had no answer.
    local answer, following = of_round(field)
    local asked = starts(value, '{"kind":"suspended')
    local answered = known[answer] and not starts(known[answer], '{"kind":"fail"')
    local left = asked and not answered and not (known[following] and cjson.decode(value)['for'].announced == false)
    if asked and string.find(value, '"for":{"kind":"task"', 1, true) then
      local told = known[following] and not starts(known[following], '{"kind":"raised')
      left = not told and not goes_on(run, run_id, cjson.decode(value)['for'].payload.taskId, known[answer])
      anew[answer] = left
    end
    -- Nobody would ever tell what a task came to that does not go on for this run.
    local task = string.match(value, ',"task":%["(task%-%x+)","[^"]*"%]}$')
    if task and not known[answer] and not goes_on(run, run_id, task) then
      left = true
    end
    if not (starts(value, '{"kind":"raised') or starts(value, '{"kind":"fail"') or left) then
      redis.call('HSET', KEYS[9], field, value)
    end
    if string.find(field, '^0!%d+:durable%-message%-') then
      redis.call('HINCRBY', run, 'messages', 1)
    end
  end
  for answer, again in pairs(anew) do
    if again then
      redis.call('HDEL', KEYS[9], answer)
    end
  end
  inherit(KEYS[13], KEYS[14])
  -- A call keeps its idempotency key: that has the name of the run in which the model made the call.
  local count = redis.call('LLEN', KEYS[8])
  if count > 0 then
    local before = redis.call('HMGET', KEYS[12], 'taken', 'takenFrom')
    local same = count == tonumber(before[1] or '0')
    redis.call('HSET', run, 'taken', int(count), 'takenFrom', same and before[2] or fields.retryOf)
  end
end
redis.call('ZADD', KEYS[4], int(now), run_id)
redis.call('ZADD', KEYS[5], int(now), run_id)
redis.call('ZADD', ARGV[5] .. 'queued', int(now), run_id)
if not live and not waits then
  redis.call('ZADD', KEYS[6], int(now + tonumber(ARGV[4])), run_id)
end
if thread then
  if KEYS[10] and redis.call('EXISTS', KEYS[8]) == 1 then
    local given = redis.call('HGET', KEYS[12], 'given')
    if given then
      redis.call('HSET', run, 'given', given) -- what its checkpoints build on
    end
  end
  redis.call('HSETNX', thread, 'resource', fields.resourceId or '')
  redis.call('ZADD', thread .. ':runs', int(now), run_id)
  for _, suffix in ipairs({'', ':exchanges', ':runs'}) do
    redis.call('PERSIST', thread .. suffix)
  end
  if live then
    redis.call('HSET', run, 'behind', '1')
    redis.call('RPUSH', thread .. ':queue', run_id)
  else
    admit(thread, run, run_id)
  end
end
if thread then
  redis.call('PUBLISH', thread .. ':begun', run_id)
end
if KEYS[7] ~= run then
  redis.call('SET', KEYS[7], hash .. ' ' .. run_id) -- expires with the run: `close`
end
watch(run, 'queued')
return {'created', run_id, int(now), waits and 1 or 0}
