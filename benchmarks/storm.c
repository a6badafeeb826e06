/* storm: SYNs from many forged sources at a steady rate, to measure what a sensor misses.
 *
 *     storm --to ADDRESS --ports LO-HI --from ADDRESS --sources N --packets N --rate PER_SECOND
 *
 * Packet k comes from the address FROM + k mod N. After each round of all sources the port moves on by one, and begins
 * again at LO after HI: each source scans. Prints one line of JSON: packets sent, refused by the kernel, seconds taken,
 * and the wall clock at the first and after the last packet.
 *
 * It needs CAP_NET_RAW, and sends to the documentation networks of RFC 5737 only: no host outside a lab has such an
 * address.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { MAX_BATCH = 64, BATCHES_PER_SECOND = 1000, SEND_BUFFER = 8 << 20, FIRST_SOURCE_PORT = 32768, SOURCE_PORTS = 28000 };

struct packet {
    struct iphdr ip;
    struct tcphdr tcp;
};

struct storm {
    uint32_t to, from; /* host byte order */
    unsigned low, high;
    unsigned long sources, packets, rate;
};

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "storm: %s\n", what);
    exit(1);
}

/* The Internet checksum (RFC 1071) over bytes that follow `sum`. */
static uint16_t checksum(const void *bytes, size_t length, uint32_t sum)
{
    uint16_t word;
    for (size_t at = 0; at + 1 < length; at += 2) {
        memcpy(&word, (const char *)bytes + at, sizeof word);
        sum += word;
    }
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static void make_syn(struct packet *packet, const struct storm *storm, unsigned long number)
{
    const unsigned ports = storm->high - storm->low + 1;
    const unsigned port = storm->low + (unsigned)(number / storm->sources % ports);
    *packet = (struct packet){
        .ip = {.version = 4, .ihl = 5, .tot_len = htons(sizeof *packet), .ttl = 64, .protocol = IPPROTO_TCP,
               .id = htons((uint16_t)number), .saddr = htonl(storm->from + (uint32_t)(number % storm->sources)),
               .daddr = htonl(storm->to)},
        .tcp = {.source = htons((uint16_t)(FIRST_SOURCE_PORT + number % SOURCE_PORTS)), .dest = htons((uint16_t)port),
                .seq = htonl((uint32_t)number), .doff = 5, .syn = 1, .window = htons(1024)},
    };
    packet->ip.check = checksum(&packet->ip, sizeof packet->ip, 0);
    /* The pseudo header of RFC 9293, 3.1. */
    const struct { uint32_t source, destination; uint8_t zero, protocol; uint16_t length; } pseudo = {
        packet->ip.saddr, packet->ip.daddr, 0, IPPROTO_TCP, htons(sizeof packet->tcp)};
    const uint16_t sum = checksum(&pseudo, sizeof pseudo, 0);
    packet->tcp.check = checksum(&packet->tcp, sizeof packet->tcp, (uint16_t)~sum);
}

static unsigned long number(const char *text, unsigned long most)
{
    char *end;
    errno = 0;
    const unsigned long value = strtoul(text, &end, 10);
    if (errno || end == text || *end || value < 1 || value > most)
        fail("a number is missing, zero, or too large");
    return value;
}

static uint32_t address(const char *text)
{
    struct in_addr parsed;
    if (inet_pton(AF_INET, text, &parsed) != 1)
        fail("not an IPv4 address");
    return ntohl(parsed.s_addr);
}

static bool is_documentation(uint32_t to)
{
    const uint32_t network = to >> 8;
    return network == 0xC00002 || network == 0xC63364 || network == 0xCB0071; /* 192.0.2, 198.51.100, 203.0.113 */
}

static struct storm arguments(int count, char **values)
{
    enum { TO, PORTS, FROM, SOURCES, PACKETS, RATE, OPTIONS };
    static const struct option options[] = {
        {"to", required_argument, NULL, TO},           {"ports", required_argument, NULL, PORTS},
        {"from", required_argument, NULL, FROM},       {"sources", required_argument, NULL, SOURCES},
        {"packets", required_argument, NULL, PACKETS}, {"rate", required_argument, NULL, RATE},
        {NULL, 0, NULL, 0}};
    struct storm storm = {0};
    unsigned given = 0;
    for (int option; (option = getopt_long(count, values, "", options, NULL)) != -1;) {
        switch (option) {
        case TO: storm.to = address(optarg); break;
        case FROM: storm.from = address(optarg); break;
        case SOURCES: storm.sources = number(optarg, 1ULL << 24); break;
        case PACKETS: storm.packets = number(optarg, 1ULL << 32); break;
        case RATE: storm.rate = number(optarg, 10000000); break;
        case PORTS: {
            char *high = strchr(optarg, '-');
            if (!high)
                fail("--ports takes LO-HI");
            *high++ = '\0';
            storm.low = (unsigned)number(optarg, 65535);
            storm.high = (unsigned)number(high, 65535);
            break;
        }
        default: fail("see the head of storm.c for its options");
        }
        given |= 1U << option;
    }
    if (given != (1U << OPTIONS) - 1 || optind != count)
        fail("it takes --to --ports --from --sources --packets --rate, all of them");
    if (storm.high < storm.low)
        fail("--ports takes LO-HI");
    if (!is_documentation(storm.to))
        fail("--to must lie in a documentation network: 192.0.2.0/24, 198.51.100.0/24 or 203.0.113.0/24");
    return storm;
}

static double now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void sleep_until(double monotonic)
{
    struct timespec time = {.tv_sec = (time_t)monotonic};
    time.tv_nsec = (long)((monotonic - (double)time.tv_sec) * 1e9);
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) == EINTR)
        ;
}

int main(int count, char **values)
{
    const struct storm storm = arguments(count, values);
    const int sock = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    if (sock < 0)
        fail("no raw socket: run it as root");
    const int buffer = SEND_BUFFER;
    setsockopt(sock, SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer);

    static struct packet packets[MAX_BATCH];
    static struct iovec parts[MAX_BATCH];
    static struct mmsghdr messages[MAX_BATCH];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(storm.to)};
    for (int i = 0; i < MAX_BATCH; i++) {
        parts[i] = (struct iovec){.iov_base = &packets[i], .iov_len = sizeof packets[i]};
        messages[i].msg_hdr =
            (struct msghdr){.msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &parts[i], .msg_iovlen = 1};
    }

    /* Batches save system calls; at most a millisecond's worth at once, so that a rate is steady and no row of bursts. */
    unsigned long batch = storm.rate / BATCHES_PER_SECOND;
    batch = batch < 1 ? 1 : batch > MAX_BATCH ? MAX_BATCH : batch;
    const double first = now(CLOCK_REALTIME), start = now(CLOCK_MONOTONIC);
    unsigned long sent = 0, refused = 0;
    while (sent + refused < storm.packets) {
        const unsigned long done = sent + refused, left = storm.packets - done;
        const unsigned size = (unsigned)(left < batch ? left : batch);
        sleep_until(start + (double)done / (double)storm.rate);
        for (unsigned i = 0; i < size; i++)
            make_syn(&packets[i], &storm, done + i);
        const int taken = sendmmsg(sock, messages, size, 0);
        /* An error speaks of the first packet alone (sendmmsg(2)). */
        if (taken < 0)
            refused++;
        else
            sent += (unsigned long)taken;
    }
    printf("{\"sent\": %lu, \"refused\": %lu, \"seconds\": %.6f, \"first\": %.6f, \"last\": %.6f}\n", sent, refused,
           now(CLOCK_MONOTONIC) - start, first, now(CLOCK_REALTIME));
    return 0;
}
