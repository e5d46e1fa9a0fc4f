-- One heartbeat of a pool: extends every lease it still holds. Per turn: job, round, turn, fence. Answers those that are lost.
frees()
local lease = tonumber(ARGV[1])
local lost = {}
for k = 2, #ARGV, 4 do
  local job, r, i, fence = ARGV[k], ARGV[k + 1], ARGV[k + 2], ARGV[k + 3]
  local at, m = r .. ':' .. i, M(job, r, i)
  local v = redis.call('HMGET', J(job), 't:' .. at, 'c:' .. r, 'qn:' .. at)
  if v[1] and not v[2] and (v[1] == 'l:' .. fence or v[1] == 'q:' .. fence) then
    if v[1] ~= 'l:' .. fence then
      redis.call('HSET', J(job), 't:' .. at, 'l:' .. fence)
      dequeue(job, r, i, v[3])
    end
    redis.call('ZADD', P .. 'leases', now + lease, m)
  else
    lost[#lost + 1] = m
  end
end
return lost
