"""The engine ``openai``: any OpenAI-compatible endpoint as a device.

    endpoint    where it is, what of it is served, how long one waits
    servers     what each kind of server takes beyond the common part
    listing     what an endpoint says of itself
    asking      a request as it is sent; refusals by name
    call        one turn's way to its answer: tries, time limits
    gate        so many at once; pauses of the whole device
    reading     a stream, and the completion it makes
    faults      what a refusal means
    checking    the last look at typed output
    engine      the protocol's side
"""
