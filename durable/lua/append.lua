-- Appends a batch to a run: its chunks numbered, with what is stored in the same step; fenced by the token, and once,
-- however often it is sent.
--
-- KEYS 1 run  2 log  3 checkpoints  4 ledger  5 calls  6 pending  7 deadlines
-- ARGV 1 channel  2 token  3 writer  4 batch number  5 count of chunks, may be 0  6 bodies, joined by newlines
--      7 '1' when it is progress  8 checkpoint or ''  9 run id  10 count of ledger entries  11 count of files
--      12… field, value, … of the ledger, then name, value, … of files that the chunks name, then call, 'step round', body,
--      ms until it expires or '', … of calls that begin to wait
-- Returns {'written' | 'seen', first seq, last seq} | {'fenced'} | {'gap'}
-- `seen` comes before `fenced`: a batch that was written stays written, even if the lease is gone since. Once another
-- attempt has the run, every batch of an earlier one is `fenced`, also one that was written: `claim` forgets its number.
local run = KEYS[1]
local verdict, first, last = judge(run, ARGV[3], ARGV[4])
if verdict == 'seen' then
  return {'seen', first, last}
end
local record = redis.call('HMGET', run, 'status', 'token')
if record[1] ~= 'running' or record[2] ~= ARGV[2] then
  return {'fenced'}
end
if verdict == 'gap' then
  return {'gap'}
end
first, last = write(run, KEYS[2], ARGV[1], ARGV[2], ARGV[5], ARGV[6])
keep(run, KEYS[3], last, ARGV[7], ARGV[8])
local files = 12 + 2 * tonumber(ARGV[10])
local waiting = files + 2 * tonumber(ARGV[11])
for i = 12, files - 1, 2 do
  redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 1])
end
for i = files, waiting - 1, 2 do
  redis.call('HSET', run .. ':files', ARGV[i], ARGV[i + 1])
end
for i = waiting, #ARGV, 4 do
  announce(run, KEYS[5], KEYS[6], KEYS[7], ARGV[9], ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3])
end
remember(run, ARGV[3], ARGV[4], first, last)
return {'written', first, last}
