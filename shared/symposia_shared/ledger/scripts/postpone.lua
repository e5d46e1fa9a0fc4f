-- A turn failed for a cause that another try may mend: it is queued again later. ARGV: job, round, turn, fence, cause, most tries,
-- ms before the first, ms at most, jitter 0..1, '1' if it is to run beside no other suspect.
-- Answers 'later', 'over' (tried often enough, or no time is left before the deadline) or 'lost' (it is no longer the caller's).
frees()
local job, r, i, fence, cause = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local j, at = J(job), r .. ':' .. i
local v = redis.call('HMGET', j, 't:' .. at, 'c:' .. r, 'd:' .. r, 'y:' .. at, 'qn:' .. at)
if not v[1] or v[2] or (v[1] ~= 'l:' .. fence and v[1] ~= 'q:' .. fence) then return 'lost' end
local had = v[4] or ''
local tried = tonumber(string.match(had, cause .. '=(%d+)') or '0')
local wait = math.min(tonumber(ARGV[8]), tonumber(ARGV[7]) * 2 ^ math.min(tried, 30)) * (1 - tonumber(ARGV[9]) / 2)
local due = now + math.floor(wait)
if tried >= tonumber(ARGV[6]) or due >= tonumber(v[3]) then return 'over' end
redis.call('ZREM', P .. 'leases', M(job, r, i))
dequeue(job, r, i, v[5])
if tried == 0 then had = had .. cause .. '=1;' else had = string.gsub(had, cause .. '=%d+', cause .. '=' .. (tried + 1)) end
redis.call('HSET', j, 't:' .. at, 'b', 'y:' .. at, had)
if ARGV[10] == '1' then redis.call('HSET', j, 'al:' .. at, 1) end
redis.call('ZADD', P .. 'delayed', due, M(job, r, i))
count('calls_failed')
count('retried_' .. cause)
return 'later'
