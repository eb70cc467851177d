"""redis-py as applications use it, through the gateway: python.py HOST PORT

Every worker counts what it did and checks each answer. Nothing is tried again and no connection may be made twice: an
error of any kind, or a connection that is lost behind the library's back, ends the run with status 1. Says "progress N"
while it goes on (N: rounds of the slowest worker), ends when a line comes on its standard input, and then compares what
the server holds with what was counted.
"""

import json
import sys
import threading
import time
import traceback

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

HOST, PORT = sys.argv[1], int(sys.argv[2])
PATIENCE = 30
BUMP = "redis.call('RPUSH', KEYS[2], ARGV[1]) return redis.call('INCR', KEYS[1])"

stop = threading.Event()
failures = []
rounds = {}


def expect(condition, *told):
    if not condition:
        raise AssertionError(" ".join(str(word) for word in told))


class Once(redis.Connection):
    """A connection that is made once."""

    made = False

    def _connect(self):
        expect(not self.made, "a connection was lost and made again")
        self.made = True
        return super()._connect()


OPTIONS = {"host": HOST, "port": PORT, "retry": Retry(NoBackoff(), 0), "socket_timeout": PATIENCE}


class Side:
    """The workers of one protocol version, which share a pool."""

    def __init__(self, protocol):
        self.name = f"py{protocol}"
        self.protocol = protocol
        self.pool = redis.ConnectionPool(connection_class=Once, protocol=protocol, max_connections=64, **OPTIONS)
        self.redis = redis.Redis(connection_pool=self.pool)
        self.produced = 0
        self.taken = {}
        self.published = None
        self.swaps = {}

    def key(self, text):
        return f"{self.name}:{text}"

    def counter(self, tick):
        n = 0
        while not stop.is_set():
            n += 1
            expect(self.redis.incr(self.key("counter")) == n, "counter", n)
            expect(self.redis.set(self.key("value"), n) is True, "set", n)
            expect(self.redis.get(self.key("value")) == b"%d" % n, "get", n)
            self.redis.hset(self.key("hash"), mapping={"n": n, "twice": 2 * n})
            found = self.redis.hgetall(self.key("hash"))
            expect(found == {b"n": b"%d" % n, b"twice": b"%d" % (2 * n)}, "hash", found)
            self.redis.zadd(self.key("zset"), {f"m{n % 10}": n + 0.5})
            expect(self.redis.zscore(self.key("zset"), f"m{n % 10}") == n + 0.5, "zset", n)
            tick()
        return lambda: expect(self.redis.get(self.key("counter")) == b"%d" % n, "counter at the end", n)

    def pipelines(self, tick):
        n = 0
        while not stop.is_set():
            with self.redis.pipeline(transaction=n % 2 == 1) as pipe:
                for step in range(20):
                    pipe.rpush(self.key("list"), n * 20 + step)
                    pipe.echo(f"{n}.{step}")
                replies = pipe.execute()
            expected = [x for step in range(20) for x in (n * 20 + step + 1, b"%d.%d" % (n, step))]
            expect(replies == expected, "pipeline", n, replies)
            n += 1
            tick()
        expected = [b"%d" % element for element in range(n * 20)]
        return lambda: expect(self.redis.lrange(self.key("list"), 0, -1) == expected, "the list at the end")

    def optimist(self, number):
        """WATCH, read, MULTI, write, EXEC, again after a conflict: several of them on the same key."""

        def work(tick):
            def step(pipe):
                value = int(pipe.get(self.key("contended")) or 0)
                pipe.multi()
                pipe.set(self.key("contended"), value + 1)
                pipe.rpush(self.key(f"optimist:{number}"), value + 1)

            n = 0
            while not stop.is_set():
                self.redis.transaction(step, self.key("contended"))
                n += 1
                tick()
            self.swaps[number] = n

            def check():
                total = int(self.redis.get(self.key("contended")))
                expect(total == sum(self.swaps.values()), "contended:", total, self.swaps)
                expect(self.redis.llen(self.key(f"optimist:{number}")) == n, "optimist", number, n)

            return check

        return work

    def scripts(self, tick):
        script = self.redis.register_script(BUMP)
        sha = self.redis.script_load("return {KEYS[1], ARGV[1], 'bare'}")
        keys = [self.key("scripted"), self.key("script-list")]
        n = 0
        while not stop.is_set():
            n += 1
            expect(script(keys=keys, args=[n]) == n, "script", n)
            # without the library's answer to NOSCRIPT
            answer = self.redis.evalsha(sha, 1, keys[0], n)
            expect(answer == [keys[0].encode(), b"%d" % n, b"bare"], "evalsha", answer)
            tick()
        return lambda: expect(
            self.redis.lrange(keys[1], 0, -1) == [b"%d" % x for x in range(1, n + 1)], "the script's list"
        )

    def producer(self, tick):
        n = 0
        while not stop.is_set():
            self.redis.rpush(self.key("queue"), n)
            n += 1
            tick()
            # lets the queue run empty now and then, so that consumers do block
            time.sleep(0.002)
        self.produced = n
        for _ in range(2):
            self.redis.rpush(self.key("queue"), "end")
        return lambda: None

    def consumer(self, number):
        def work(tick):
            taken = self.taken[number] = []
            while True:
                got = self.redis.blpop(self.key("queue"), timeout=1)
                if got is not None:
                    if got[1] == b"end":
                        break
                    taken.append(int(got[1]))
                tick()
            expect(taken == sorted(taken), "consumer", number, "out of order")

            def check():
                both = sorted(self.taken[0] + self.taken[1])
                expect(both == list(range(self.produced)), "the queue:", len(both), "of", self.produced)

            return check

        return work

    def publisher(self, tick):
        n = 0
        while not stop.is_set():
            # the channel and the pattern
            receivers = self.redis.publish(self.key("news"), n)
            expect(receivers == 2, "receivers", receivers)
            n += 1
            tick()
        self.published = n
        self.redis.publish(self.key("news"), "end")
        return lambda: None

    def subscriber(self):
        # Kept until the end: what is forgotten is closed, and then made again from the pool for somebody else.
        heard = self.heard = self.redis.pubsub(ignore_subscribe_messages=False)
        heard.subscribe(self.key("news"))
        heard.psubscribe(self.key("n*"))
        for _ in range(2):
            message = heard.get_message(timeout=PATIENCE)
            expect(message and message["type"].endswith("subscribe"), message)

        def work(tick):
            following = {"message": 0, "pmessage": 0}
            ended = set()
            while len(ended) < 2:
                message = heard.get_message(timeout=PATIENCE)
                expect(message, "nothing was heard for a long time")
                kind, data = message["type"], message["data"]
                if data == b"end":
                    ended.add(kind)
                    continue
                expect(int(data) == following[kind], kind, data, "instead of", following[kind])
                following[kind] += 1
                tick()
            return lambda: expect(set(following.values()) == {self.published}, following, self.published)

        return work

    def scanner(self):
        names = {self.key(f"fixed:{n}").encode() for n in range(300)}
        self.redis.mset({name: 1 for name in names})

        def work(tick):
            while not stop.is_set():
                found = set(self.redis.scan_iter(match=self.key("fixed:*"), count=20))
                expect(found == names, "a scan found", len(found))
                tick()
            return lambda: None

        return work

    def workers(self):
        yield "counter", self.counter
        yield "pipelines", self.pipelines
        for number in range(3):
            yield f"optimist {number}", self.optimist(number)
        yield "scripts", self.scripts
        for number in range(2):
            yield f"consumer {number}", self.consumer(number)
        yield "producer", self.producer
        yield "subscriber", self.subscriber()
        yield "publisher", self.publisher
        yield "scanner", self.scanner()


def run(name, work, checks):
    rounds[name] = 0

    def tick():
        rounds[name] += 1

    try:
        checks.append(work(tick))
    except Exception:
        failures.append(f"{name}:\n{traceback.format_exc()}")
        stop.set()


def main():
    checks, threads = [], []
    for side in (Side(2), Side(3)):
        for name, work in side.workers():
            name = f"{side.name} {name}"
            threads.append(threading.Thread(target=run, args=(name, work, checks), daemon=True))
    for thread in threads:
        thread.start()

    def wait_for_the_end():
        sys.stdin.readline()
        stop.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    while not stop.wait(0.05):
        print("progress", min(rounds.values()) if len(rounds) == len(threads) else 0)
        print("rounds", json.dumps(rounds), flush=True)
    deadline = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()) if not failures else 1)
        if thread.is_alive() and not failures:
            failures.append("a worker does not end")
    for check in checks if not failures else []:
        try:
            check()
        except Exception:
            failures.append(traceback.format_exc())
    for failure in failures:
        print(failure, file=sys.stderr)
    print("done", json.dumps(rounds), flush=True)
    sys.exit(1 if failures else 0)


main()
