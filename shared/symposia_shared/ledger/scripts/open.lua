-- Opens round r once, after round r-1 was closed (and is in S3, so its turns leave the ledger).
local job, r = ARGV[1], tonumber(ARGV[2])
local j = J(job)
local v = redis.call('HMGET', j, 'st', 'cur', 'c:' .. (r - 1), 'n:' .. (r - 1))
if not v[1] then return 'gone' end
if v[1] ~= 'open' then return v[1] end
if tonumber(v[2]) ~= r - 1 or (r > 0 and not v[3]) then return 'was' end
if r > 0 then
  for i = 0, tonumber(v[4]) - 1 do
    local at = (r - 1) .. ':' .. i
    redis.call('HDEL', j, 't:' .. at, 'p:' .. at, 'v:' .. at, 'qn:' .. at, 'a:' .. at, 'cl:' .. at, 'e:' .. at, 'y:' .. at, 'al:' .. at)
  end
end
local turns = {}
for k = 8, #ARGV do turns[#turns + 1] = ARGV[k] end
open(job, r, ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], turns)
return 'won'
