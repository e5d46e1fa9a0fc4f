-- Ends a round for the reason given, if it holds. A chord's body that comes too early leaves word, so that the last reply rings.
frees()
local got = close(ARGV[1], ARGV[2], ARGV[3])
if got == 'notyet' and ARGV[4] == '1' then redis.call('HSET', J(ARGV[1]), 'b:' .. ARGV[2], 1) end
return got
