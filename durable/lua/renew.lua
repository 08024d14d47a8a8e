-- Renews the leases of a process. A lease that another claim has replaced stays lost.
--
-- KEYS 1 leases
-- ARGV 1 lease, ms  2… run id:token
-- Returns 1 (renewed) or 0 (lost) for each
local expiry = int(now_ms() + tonumber(ARGV[1]))
local renewed = {}
for i = 2, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('ZADD', KEYS[1], expiry, ARGV[i])
    renewed[#renewed + 1] = 1
  else
    renewed[#renewed + 1] = 0
  end
end
return renewed
