-- Prepended to every script: the clock, the one way to write to a log, and the one way to change a run's status.
-- A script that uses these declares the keys it hands to them.

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function int(number)
  return string.format('%d', number)
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

-- What is stored in the same step as chunks: a checkpoint (or ''), and ledger entries as field, value, … from `args[i]`.
-- `progress` says whether it counts as such: a run that gets on is not one that kills its workers.
local function keep(run, checkpoints, ledger, last, progress, checkpoint, args, i)
  if checkpoint ~= '' then
    redis.call('RPUSH', checkpoints, checkpoint)
    redis.call('HSET', run, 'checkpointSeq', int(last))
  end
  while i < #args do
    redis.call('HSET', ledger, args[i], args[i + 1])
    i = i + 2
  end
  if progress == '1' then
    redis.call('HSET', run, 'claims', '0')
    redis.call('HDEL', run, 'retriesUsed', 'lastError')
  end
end

local function remember(run, writer, batch, first, last)
  redis.call('HSET', run, 'w:' .. writer, batch .. ' ' .. int(first) .. ' ' .. int(last))
end

-- `indexes` starts the names of the sorted sets of runs, one a status.
local function move(run, indexes, run_id, from, to)
  redis.call('HSET', run, 'status', to)
  local score = redis.call('HGET', run, 'createdAt')
  redis.call('ZREM', indexes .. from, run_id)
  redis.call('ZADD', indexes .. to, score, run_id)
end

-- The end of a run: nothing but reading is possible after it, and its retention begins.
local function close(run, log, request, checkpoints, ledger, tombstone, indexes, run_id, from, to, tombstone_seconds)
  local now = now_ms()
  move(run, indexes, run_id, from, to)
  redis.call('HSET', run, 'finishedAt', int(now))
  redis.call('HDEL', run, 'owner', 'nonce')
  local retention = tonumber(redis.call('HGET', run, 'retention'))
  for _, key in ipairs({run, log, request, checkpoints, ledger}) do
    redis.call('EXPIRE', key, int(retention))
  end
  redis.call('SET', tombstone, '1', 'EX', int(retention + tonumber(tombstone_seconds)))
end
