-- Tells the run that has started this one what this one does, once; fenced by this one's token.
--
-- KEYS 1 run
-- ARGV 1 run id  2 token  3 number of the message, unlike any other of this token  4 bodies of chunks, joined by
--      newlines; or '', for a run that is told chunk by chunk: its log has them
-- Returns 'told' | 'seen' | 'fenced'
local run, run_id = KEYS[1], ARGV[1]
local record = redis.call('HMGET', run, 'status', 'token', 'mirrored')
if record[3] == ARGV[2] .. '.' .. ARGV[3] then
  return 'seen'
end
if record[1] ~= 'running' or record[2] ~= ARGV[2] then
  return 'fenced'
end
redis.call('HSET', run, 'told', ARGV[4], 'mirrored', ARGV[2] .. '.' .. ARGV[3])
redis.call('HDEL', run, 'wasSuspended')
report(run, run_id)
return 'told'
