-- Records a reply, once, under its fence, and closes the round when it was the last one missing or made the quorum.
-- ARGV: job, round, turn, fence, reply, '1' if it spoke, '1' if a doorbell waits for it in the pool.
-- Answers {status, closed reason or '', what to ring: 'advance', 'settle' or ''}.
local job, r, i, fence, reply, spoke, attended = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local j, at, m = J(job), r .. ':' .. i, M(job, r, i)
local v = redis.call('HMGET', j, 't:' .. at, 'c:' .. r, 'n:' .. r, 'q:' .. r, 'sf:' .. r, 'h:' .. r, 'b:' .. r, 'a:' .. at, 'qn:' .. at, 'f:' .. r)
local t = v[1]
if not t then return {'gone', '', ''} end
if t == 'd:' .. fence then return {'again', '', ''} end
if t ~= 'l:' .. fence and t ~= 'q:' .. fence then
  count('stale_replies')
  return {'stale', '', ''}
end
redis.call('ZREM', P .. 'leases', m)
dequeue(job, r, i, v[9])
if v[2] then
  redis.call('HSET', j, 't:' .. at, 'x')
  count('late_replies')
  return {'late', '', ''}
end
redis.call('HSET', j, 't:' .. at, 'd:' .. fence, 'v:' .. at, reply)
redis.call('HDEL', j, 'p:' .. at)
count('calls_recorded')
local inn = redis.call('HINCRBY', j, 'in:' .. r, 1)
local voices = spoke == '1' and redis.call('HINCRBY', j, 'sp:' .. r, 1) or 0
local reason = ''
if inn == tonumber(v[3]) then reason = 'all' elseif spoke == '1' and v[4] and voices >= tonumber(v[4]) then reason = 'quorum' end
if reason ~= '' then
  close(job, r, reason)
  -- the chord's body advances a healthy round; where it cannot (no chord, already seen, a repeated or unattended turn), the caller rings
  local trusted = reason == 'all' and v[6] and not v[7] and attended == '1' and tonumber(v[8] or '1') == 1
  return {'ok', reason, trusted and '' or 'advance'}
end
local follows = tonumber(v[10] or '0') > 0
if follows then redis.call('ZADD', P .. 'follow', now, job .. '|' .. r) end
return {'ok', '', (follows or v[5] and inn >= tonumber(v[5])) and 'settle' or ''}
