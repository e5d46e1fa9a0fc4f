-- Members of a set whose time has come, each given to one caller for a while. ARGV: set, most, ms after which they come again.
frees()
local due = redis.call('ZRANGEBYSCORE', P .. ARGV[1], '-inf', now, 'LIMIT', 0, tonumber(ARGV[2]))
for _, m in ipairs(due) do redis.call('ZADD', P .. ARGV[1], now + tonumber(ARGV[3]), m) end
return due
