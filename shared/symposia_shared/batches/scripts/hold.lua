-- Holds a batch for a driver, for so long. KEYS[1] its hash; ARGV: driver, milliseconds. Answers its status, '' where another holds it, 'gone'.
local T = redis.call('TIME')
local now = T[1] * 1000 + math.floor(T[2] / 1000)
local v = redis.call('HMGET', KEYS[1], 'st', 'own', 'until')
if not v[1] then return 'gone' end
if v[2] and v[2] ~= ARGV[1] and tonumber(v[3]) > now then return '' end
redis.call('HSET', KEYS[1], 'own', ARGV[1], 'until', now + tonumber(ARGV[2]))
return v[1]
