-- Prepended to every script: the clock, the one way to write to a log, and the one way to change a run's status.
-- A script that uses these declares the keys it hands to them; the names of other runs, and of what belongs to them,
-- are made from its run's.

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function int(number)
  return string.format('%d', number)
end

-- Keeps in the run's record which chunks of it no longer count, as chunks say that are written: whoever reads the log
-- later knows it before he comes to those. Only these two types say so, and say it last.
local function take_back(run, bodies)
  for line in string.gmatch(bodies, '[^\n]+') do
    if string.find(line, '^{"type":"step%-start"') or string.find(line, '^{"type":"tripwire"') then
      local from, to = string.match(line, '.*"void":{"from":(%d+),"to":(%d+)}')
      if from then
        local known = redis.call('HGET', run, 'voids')
        redis.call('HSET', run, 'voids', (known and known .. ' ' or '') .. from .. '-' .. to)
      end
    end
  end
end

-- Appends `count` chunk bodies (joined by newlines) as one entry, numbers them, and tells the followers.
-- An entry's id is `0-<seq of its last chunk>`, so that "after seq n" is one range query, also for n inside an entry.
local function write(run, log, channel, attempt, count, bodies)
  local first = tonumber(redis.call('HGET', run, 'lastSeq') or '0') + 1
  if tonumber(count) == 0 then
    return first, first - 1
  end
  local last = first + tonumber(count) - 1
  -- One field: a second one costs up to 20 bytes a chunk.
  redis.call('XADD', log, '0-' .. int(last), 'c', attempt .. ' ' .. bodies)
  redis.call('HSET', run, 'lastSeq', int(last))
  if string.find(bodies, '"void":{', 1, true) then
    take_back(run, bodies)
  end
  redis.call('PUBLISH', channel, int(first) .. ' ' .. attempt .. ' ' .. bodies)
  return first, last
end

-- A writer numbers its batches 1, 2, 3 … and sends one at a time. Tells whether this batch is 'new', was 'seen' (then
-- with the seqs that it got), or is a 'gap' (a batch between was never written).
local function judge(run, writer, batch)
  local last = redis.call('HGET', run, 'w:' .. writer)
  local number, first, final = 0, '0', '0'
  if last then
    local parts = {}
    for part in string.gmatch(last, '%d+') do
      parts[#parts + 1] = part
    end
    number, first, final = tonumber(parts[1]), parts[2], parts[3]
  end
  if number == tonumber(batch) then
    return 'seen', tonumber(first), tonumber(final)
  end
  if number + 1 ~= tonumber(batch) then
    return 'gap', 0, 0
  end
  return 'new', 0, 0
end

-- Adds the time since a run with a budget of seconds was claimed, or since this was done last, to what it has used.
-- `stops` says that it is not executed any more: from then on no time passes for it.
local function spend(run, stops)
  local since = redis.call('HGET', run, 'executingSince')
  if not since then
    return
  end
  local now = now_ms()
  redis.call('HINCRBY', run, 'msUsed', int(math.max(0, now - tonumber(since))))
  if stops then
    redis.call('HDEL', run, 'executingSince')
  else
    redis.call('HSET', run, 'executingSince', int(now))
  end
end

-- What is stored in the same step as chunks: a checkpoint, or ''. `progress` says whether it counts as such: a run that
-- gets on is not one that kills its workers.
local function keep(run, checkpoints, last, progress, checkpoint)
  if checkpoint ~= '' then
    redis.call('RPUSH', checkpoints, checkpoint)
    redis.call('HSET', run, 'checkpointSeq', int(last))
  end
  if progress == '1' then
    spend(run, false)
    redis.call('HSET', run, 'claims', '0')
    if redis.call('HGET', run, 'kind') ~= 'task' then -- a task makes one call: its retries are counted in all
      redis.call('HDEL', run, 'retriesUsed', 'lastError')
    end
  end
end

local function remember(run, writer, batch, first, last)
  redis.call('HSET', run, 'w:' .. writer, batch .. ' ' .. int(first) .. ' ' .. int(last))
end

-- The names of a run's thread, of that's other runs, of the run that has started it, and of those that it has started.
-- They follow from the run's own name: which run comes next
-- is known to the script alone.
local function root_of(run, run_id)
  return string.sub(run, 1, -(#':run:{}' + #run_id + 1))
end

local function thread_of(run, run_id, thread_id)
  return root_of(run, run_id) .. ':thread:{' .. thread_id .. '}'
end

local function run_of(run, run_id, other)
  return root_of(run, run_id) .. ':run:{' .. other .. '}'
end

-- The limits that a task is under, `name=most` each, in its record. A task takes a place under each of them while it is
-- executed. Returns the names of the sets of those that have one, with how many may.
local function limits_of(run, run_id)
  local found = {}
  for name, most in string.gmatch(redis.call('HGET', run, 'limits') or '', '(%S+)=(%d+)') do
    found[#found + 1] = {root_of(run, run_id) .. ':limit:' .. name, tonumber(most)}
  end
  return found
end

-- There is a place under a limit: wake the task that has waited for it longest.
local function offer(run, run_id, places)
  local root = root_of(run, run_id)
  local first = redis.call('ZPOPMIN', places .. ':waiting')
  while first[1] do
    if redis.call('HGET', run_of(run, run_id, first[1]), 'status') == 'queued' then
      redis.call('ZADD', root .. ':wakeups', int(now_ms()), first[1])
      redis.call('RPUSH', root .. ':woken', first[1])
      return
    end
    first = redis.call('ZPOPMIN', places .. ':waiting') -- it is there no more
  end
end

-- Offers the places that are free to others: this task does not take them now. It may have been offered them.
local function pass_on(run, run_id)
  for _, limit in ipairs(limits_of(run, run_id)) do
    if redis.call('SCARD', limit[1]) < limit[2] then
      offer(run, run_id, limit[1])
    end
  end
end

-- A task gives up its places, and what it waits for.
local function vacate(run, run_id)
  for _, limit in ipairs(limits_of(run, run_id)) do
    redis.call('ZREM', limit[1] .. ':waiting', run_id)
    redis.call('SREM', limit[1], run_id)
    if redis.call('SCARD', limit[1]) < limit[2] then
      offer(run, run_id, limit[1])
    end
  end
end

-- Tells in a run's own log what becomes of it, if that was asked for: the field `watched` of its record says so, and how
-- often it was told.
local function watch(run, status)
  local record = redis.call('HMGET', run, 'watched', 'reason', 'notBefore', 'behind', 'token')
  if not record[1] then
    return
  end
  local reason = record[2]
  if status == 'queued' then
    reason = (record[3] and 'retrying') or (record[4] and 'thread_busy')
  end
  local told = reason and ',"reason":' .. cjson.encode(reason) or ''
  local state = '{"status":"' .. status .. '"' .. told .. ',"attempt":' .. record[5] .. '}'
  local body = '{"type":"watch","payload":{"workflowState":' .. state .. ',"eventTimestamp":' .. int(now_ms()) .. '}}'
  redis.call('HINCRBY', run, 'watched', 1)
  write(run, run .. ':log', run .. ':live', '0', 1, body)
end

-- `indexes` starts the names of the sorted sets of runs, one a status. Tasks have sets of their own.
local function move(run, indexes, run_id, from, to)
  if redis.call('HGET', run, 'kind') == 'task' then
    indexes = string.gsub(indexes, 'runs:status:$', 'tasks:status:')
  end
  if from == 'running' then
    vacate(run, run_id)
  end
  redis.call('HSET', run, 'status', to)
  local score = redis.call('HGET', run, 'createdAt')
  redis.call('ZREM', indexes .. from, run_id)
  redis.call('ZADD', indexes .. to, score, run_id)
  if to == 'queued' or to == 'running' or to == 'suspended' then
    watch(run, to) -- an end is told before the last chunks: they stay the last
  end
end

-- A call that waits for an answer from outside. `place` is its step and its round, and names the question; `expires` is
-- ms, or ''. The same question again changes nothing: it may have been answered.
local function announce(run, calls, pending, deadlines, run_id, call, place, body, expires)
  local now, due, member = now_ms(), '', run_id .. ':' .. call
  local state = redis.call('HGET', calls, 's:' .. call)
  if state and string.match(state, '^%a+ (%d+ %d+)') == place then
    return
  end
  redis.call('ZREM', deadlines, member) -- that of a question before this one
  if expires ~= '' then
    due = int(now + tonumber(expires))
    redis.call('ZADD', deadlines, due, member)
  end
  redis.call('HSET', calls, 's:' .. call, 'pending ' .. place, 'c:' .. call, body, 't:' .. call, int(now) .. ' ' .. due)
  redis.call('HDEL', calls, 'd:' .. call)
  redis.call('ZADD', pending, int(now), member)
  redis.call('HSET', run, 'asked', '1')
end

-- Makes a run its thread's live one. Its place among the exchanges is fixed here, and how many of them it is given. A
-- retry has the place of the run that it repeats, unless others have begun since: they were given what is there.
local function admit(thread, run, run_id)
  local at = redis.call('LLEN', thread .. ':exchanges')
  local repeats = redis.call('HGET', run, 'retryOf')
  if repeats and redis.call('HGET', thread, 'last') == repeats then
    at = tonumber(redis.call('HGET', run_of(run, run_id, repeats), 'threadAt') or at)
  end
  redis.call('HSET', thread, 'live', run_id, 'last', run_id)
  redis.call('HSET', run, 'threadAt', int(at))
  redis.call('HSETNX', run, 'given', int(at))
end

-- Puts what the live run of a thread has said, the field `said` of its record, in its place among the exchanges.
local function share(run, run_id)
  local record = redis.call('HMGET', run, 'threadId', 'said', 'threadAt')
  if not record[1] or not record[2] or not record[3] then
    return
  end
  local thread = thread_of(run, run_id, record[1])
  local exchanges, at = thread .. ':exchanges', tonumber(record[3])
  redis.call('HDEL', run, 'said')
  if record[2] == '' and redis.call('HGET', thread, 'newest') ~= run_id then
    return -- nothing to say, and nothing said before
  end
  if at == 0 then
    redis.call('DEL', exchanges)
  else
    redis.call('LTRIM', exchanges, 0, at - 1)
  end
  if record[2] == '' then
    redis.call('HDEL', thread, 'newest')
  else
    redis.call('RPUSH', exchanges, record[2])
    redis.call('HSET', thread, 'newest', run_id)
  end
end

-- A run that has ended leaves its thread, and the next one that waits for it begins. A thread without runs expires.
local function leave(run, run_id)
  local thread_id = redis.call('HGET', run, 'threadId')
  if not thread_id then
    return
  end
  local thread = thread_of(run, run_id, thread_id)
  local queue = thread .. ':queue'
  redis.call('HDEL', run, 'behind')
  if redis.call('HGET', thread, 'live') ~= run_id then
    redis.call('LREM', queue, 0, run_id)
    return
  end
  share(run, run_id)
  local retention = tonumber(redis.call('HGET', run, 'retention'))
  retention = math.max(retention, tonumber(redis.call('HGET', thread, 'retention') or '0'))
  redis.call('HSET', thread, 'retention', int(retention))
  local following, other = redis.call('LPOP', queue), nil
  while following do
    other = run_of(run, run_id, following)
    if redis.call('HGET', other, 'status') == 'queued' then
      break
    end
    following = redis.call('LPOP', queue) -- it is there no more
  end
  if following then
    admit(thread, other, following)
    redis.call('HDEL', other, 'behind')
    redis.call('ZADD', root_of(run, run_id) .. ':wakeups', int(now_ms()), following)
    return
  end
  redis.call('HDEL', thread, 'live')
  for _, suffix in ipairs({'', ':exchanges', ':runs'}) do
    redis.call('EXPIRE', thread .. suffix, int(retention))
  end
end

-- The name in the ledger of what a call came to for which a run was started: `place` is its step, its round and its id.
local function answer_of(place)
  return (string.gsub(place, '^(%d+) (%d+) ', '%1!%2:'))
end

-- A run that is told in the log of the one that has started it, chunk by chunk: the field `nested` of its record is what
-- each of these chunks ends with, `nestedSeq` how far it was told. Then that one's log, in the next one's.
local function nest(run, run_id)
  local record = redis.call('HMGET', run, 'nested', 'nestedSeq', 'parentRunId')
  if not record[1] then
    return
  end
  local parent = run_of(run, run_id, record[3])
  local status = redis.call('HGET', parent, 'status')
  if status ~= 'queued' and status ~= 'running' and status ~= 'suspended' then
    return
  end
  for _, entry in ipairs(redis.call('XRANGE', run .. ':log', '(0-' .. (record[2] or '0'), '+')) do
    local last = string.match(entry[1], '%d+$')
    local attempt, blob = string.match(entry[2][2], '^(%d+) (.*)$')
    local _, breaks = string.gsub(blob, '\n', '\n')
    local seq, told = tonumber(last) - breaks, {}
    for body in string.gmatch(blob, '[^\n]+') do
      local origin = string.find(body, '^{"type":"[^"]*","from":') and '' or '"from":"AGENT",'
      local kind = string.find(body, '{"type":"step-finish"', 1, true) == 1 and 'step-output' or 'tool-output'
      local whole = '{"runId":"' .. run_id .. '",' .. origin .. '"seq":' .. int(seq) .. ',"attempt":' .. attempt .. ','
      told[#told + 1] = '{"type":"' .. kind .. '","payload":{"output":' .. whole .. string.sub(body, 2) .. ',' .. record[1]
      seq = seq + 1
    end
    write(parent, parent .. ':log', parent .. ':live', '0', #told, table.concat(told, '\n'))
    redis.call('HSET', run, 'nestedSeq', last)
  end
  nest(parent, record[3])
end

-- A run that another one has started tells that one what becomes of it, as long as that has not ended: the field `told`
-- of its record are bodies of chunks for the other's log, `outcome` is what the call came to for which it was started.
local function report(run, run_id)
  local record = redis.call('HMGET', run, 'parentRunId', 'parentCall', 'told', 'outcome', 'disposition')
  redis.call('HDEL', run, 'told')
  if not record[1] then
    return
  end
  nest(run, run_id)
  local root, parent = root_of(run, run_id), run_of(run, run_id, record[1])
  if record[3] and record[3] ~= '' then
    redis.call('PUBLISH', root .. ':tasks:live', record[3])
  end
  local state = redis.call('HMGET', parent, 'status', 'reason')
  if record[4] and state[1] then
    redis.call('HSET', parent .. ':children', run_id, 'ended')
  end
  if state[1] ~= 'queued' and state[1] ~= 'running' and state[1] ~= 'suspended' then
    return
  end
  if record[3] and record[3] ~= '' then
    local _, breaks = string.gsub(record[3], '\n', '\n')
    write(parent, parent .. ':log', parent .. ':live', '0', breaks + 1, record[3])
    nest(parent, record[1])
  end
  if not record[4] then
    return
  end
  redis.call('HDEL', run, 'outcome') -- else a retry of the other may want to know it
  redis.call('HSET', parent .. ':ledger', answer_of(record[2]), record[4])
  redis.call('HINCRBY', parent, 'decisions', 1)
  redis.call('HSET', parent, 'claims', '0')
  redis.call('HDEL', parent, 'idledOut') -- what it waits for after this is waited for anew
  if state[1] == 'running' then
    redis.call('PUBLISH', root .. ':nudges', 'decided ' .. record[1])
  elseif state[1] == 'suspended' and (state[2] == 'background' or record[5] == 'awaited') and state[2] ~= 'budget_reached' then
    redis.call('HDEL', parent, 'reason')
    redis.call('ZADD', root .. ':wakeups', int(now_ms()), record[1])
    redis.call('RPUSH', root .. ':woken', record[1])
    move(parent, root .. ':runs:status:', record[1], 'suspended', 'queued')
  end
end

-- A run was cancelled: so are those that it has started.
local function cancel_children(run, run_id)
  local root, children = root_of(run, run_id), redis.call('HGETALL', run .. ':children')
  for i = 1, #children, 2 do
    local child = run_of(run, run_id, children[i])
    local status = children[i + 1] == 'live' and redis.call('HGET', child, 'status')
    if status == 'queued' or status == 'running' or status == 'suspended' then
      redis.call('HSETNX', child, 'cancelRequested', '{"reason":"The run that started it was cancelled."}')
      redis.call('HDEL', child, 'notBefore')
      if status == 'suspended' then
        redis.call('HDEL', child, 'reason')
        move(child, root .. ':runs:status:', children[i], 'suspended', 'queued')
      end
      if status == 'running' then
        redis.call('PUBLISH', root .. ':nudges', 'cancel ' .. children[i])
      else
        redis.call('ZADD', root .. ':wakeups', int(now_ms()), children[i])
      end
    end
  end
end

-- The end of a run: nothing but reading is possible after it, and its retention begins. Calls that still wait can't be
-- answered any more. The indexes forget it when `expiries` says so. `own` are the run's keys, the record first and the
-- hash of calls last.
local function close(own, tombstone, pending, deadlines, indexes, run_id, from, to, tombstone_seconds)
  local run, calls, now = own[1], own[#own], now_ms()
  move(run, indexes, run_id, from, to)
  if from ~= 'running' then
    vacate(run, run_id) -- it may wait for a place, or have been offered one
  end
  redis.call('HSET', run, 'finishedAt', int(now))
  redis.call('HDEL', run, 'owner', 'nonce')
  leave(run, run_id)
  report(run, run_id)
  if to == 'cancelled' then
    cancel_children(run, run_id)
  end
  local states = redis.call('HGETALL', calls)
  for i = 1, #states, 2 do
    if string.sub(states[i], 1, 2) == 's:' and string.sub(states[i + 1], 1, 8) == 'pending ' then
      local member = run_id .. ':' .. string.sub(states[i], 3)
      redis.call('ZREM', pending, member)
      redis.call('ZREM', deadlines, member)
    end
  end
  local kept = redis.call('HMGET', run, 'retention', 'retentionFailed', 'kind')
  local retention = tonumber((to ~= 'completed' and kept[2]) or kept[1])
  for _, key in ipairs(own) do
    redis.call('EXPIRE', key, int(retention))
  end
  redis.call('EXPIRE', run .. ':children', int(retention))
  redis.call('EXPIRE', run .. ':children:order', int(retention))
  redis.call('EXPIRE', run .. ':files', int(retention))
  redis.call('SET', tombstone, '1', 'EX', int(retention + tonumber(tombstone_seconds)))
  local idempotency = redis.call('HGET', run, 'idempotency')
  if idempotency then
    redis.call('EXPIRE', idempotency, int(retention))
  end
  local expiries = string.gsub(indexes, 'runs:status:$', kept[3] == 'task' and 'tasks:expiries' or 'runs:expiries')
  local names = redis.call('HMGET', run, 'agent', 'threadId')
  local member = run_id .. ':' .. to .. ':' .. names[1] .. ':' .. (names[2] or '')
  redis.call('ZADD', expiries, int(now + retention * 1000), member)
end
