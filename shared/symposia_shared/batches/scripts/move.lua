-- Moves a batch on, once. KEYS[1] its hash, KEYS[2] the batches that have not ended; ARGV: its id, the states it may come from (joined by
-- ' '), the state it comes to, '1' if that is an end, then fields and values to be set. Answers 1 where it was moved.
local from = redis.call('HGET', KEYS[1], 'st')
if not from or not string.find(' ' .. ARGV[2] .. ' ', ' ' .. from .. ' ', 1, true) then return 0 end
local T = redis.call('TIME')
redis.call('HSET', KEYS[1], 'st', ARGV[3], 'at:' .. ARGV[3], T[1])
for k = 5, #ARGV, 2 do
  if ARGV[k + 1] == '' then redis.call('HDEL', KEYS[1], ARGV[k]) else redis.call('HSET', KEYS[1], ARGV[k], ARGV[k + 1]) end
end
if ARGV[4] == '1' then
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('HDEL', KEYS[1], 'own', 'until', 'live')
else
  -- of a batch that goes on after its end; any other keeps its place
  redis.call('ZADD', KEYS[2], 'NX', T[1], ARGV[1])
end
return 1
