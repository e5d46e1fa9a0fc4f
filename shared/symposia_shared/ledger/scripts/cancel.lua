-- Marks a job cancelled and closes its round; whoever holds its turns learns it at the next heartbeat.
frees()
local job = ARGV[1]
local v = redis.call('HMGET', J(job), 'st', 'cur')
if not v[1] then return 'gone' end
if v[1] ~= 'open' and v[1] ~= 'later' then return 'was' end
redis.call('HSET', J(job), 'st', 'cancelled')
redis.call('ZREM', P .. 'later', job)
if tonumber(v[2]) >= 0 then close(job, v[2], 'cancelled') end
redis.call('ZADD', P .. 'advance', now, job)
return 'won'
