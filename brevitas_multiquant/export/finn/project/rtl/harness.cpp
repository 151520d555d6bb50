// Drives a verilated accelerator. Commands on standard input, each answered by DONE:
//   W port count word...      writes words from address 0 of an AXI-Lite port
//   D number depth            sets the depth of a FIFO
//   Q                         prints "FIFO number fullest" for each
//   S idle busy               percent of cycles in which the source has nothing, the sink is busy
//   T beats cycles            offers at most so many beats in so many cycles; 0 0: as many as taken
//   P cycles                  gives up when nothing moved for so long
//   F count outputs beat...   streams beats (hex), prints "O cycle beat" for each output
#include "Vtop.h"
#include "verilated.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

static Vtop *top;
static long now = 0, beats_allowed = 0, cycles_allowed = 0;
static int idle = 0, busy = 0;
static long patience = 2000000;

static void settle() { top->clk = 0; top->eval(); }
static void edge() { top->clk = 1; top->eval(); now++; }
static bool chance(int percent) { return rand() % 100 < percent; }
static void fail(const char *what) { printf("STUCK %s\nDONE\n", what); fflush(stdout); }

static void put(WData *data, const std::string &hex) {
  memset(data, 0, 4 * WORDS);
  for (int digit = (int)hex.size() - 1, bit = 0; digit >= 0; digit--, bit += 4) {
    char c = hex[digit];
    data[bit / 32] |= (unsigned)(c <= '9' ? c - '0' : (c | 32) - 'a' + 10) << (bit % 32);
  }
}

static std::string token() {
  std::string text;
  int c;
  while ((c = getchar()) != EOF && c <= ' ') {}
  for (; c != EOF && c > ' '; c = getchar()) text += (char)c;
  return text;
}
static long number(int base = 10) { return strtol(token().c_str(), nullptr, base); }

static bool write_word(unsigned port, unsigned address, unsigned word) {
  bool address_taken = false, word_taken = false;
  top->port = port; top->awaddr = address; top->wdata = word;
  for (long limit = now + patience;;) {
    top->awvalid = !address_taken && (top->awvalid || !chance(idle));
    top->wvalid = !word_taken && (top->wvalid || !chance(idle));
    settle();
    address_taken |= top->awvalid && top->awready;
    word_taken |= top->wvalid && top->wready;
    bool answered = top->bvalid;
    edge();
    if (answered) break;
    if (now > limit) return false;
  }
  top->awvalid = top->wvalid = 0;
  settle(); edge();
  return true;
}

static void stream(long count, long outputs) {
  std::vector<std::string> beats(count);
  for (auto &beat : beats) beat = token();
  long sent = 0, got = 0, start = now, last = now, credit = cycles_allowed;
  bool offered = false;
  while (got < outputs || sent < count) {
    if ((credit += beats_allowed) > cycles_allowed) credit = cycles_allowed;
    bool allowed = !cycles_allowed || credit >= cycles_allowed;
    if (!offered && sent < count && allowed && !chance(idle)) {
      put(top->in_data, beats[sent]);
      offered = true;
      credit -= cycles_allowed;
    }
    top->in_valid = offered;
    top->out_ready = !chance(busy);
    settle();
    bool taken = offered && top->in_ready, given = top->out_valid && top->out_ready;
    if (given) {
      printf("O %ld ", now - start);
      for (int word = WORDS - 1; word >= 0; word--) printf("%08x", top->out_data[word]);
      printf("\n");
      got++;
    }
    edge();
    if (taken) { sent++; offered = false; }
    if (taken || given) last = now;
    if (now - last > patience) { top->in_valid = 0; fail("stream"); return; }
  }
  top->in_valid = 0;
  printf("DONE\n");
}

int main(int argc, char **argv) {
  Verilated::commandArgs(argc, argv);
  top = new Vtop;
  srand(7);
  top->rst_n = top->in_valid = top->out_ready = top->awvalid = top->wvalid = top->set = top->report = 0;
  for (int cycle = 0; cycle < 20; cycle++) { settle(); edge(); }
  top->rst_n = 1;
  for (std::string command; (command = token()) != ""; fflush(stdout)) {
    if (command == "W") {
      long port = number(), count = number();
      bool written = true;
      for (long i = 0; i < count; i++) {
        unsigned word = (unsigned)strtoul(token().c_str(), nullptr, 16);
        written = written && write_word((unsigned)port, (unsigned)(4 * i), word);
      }
      if (!written) { fail("write"); continue; }
    } else if (command == "D") {
      top->number = (unsigned)number(); top->depth = (unsigned)number(); top->set = 1;
      settle(); edge();
      top->set = 0;
    } else if (command == "Q") {
      top->report = 1;
      settle(); edge();
      top->report = 0;
    } else if (command == "S") { idle = (int)number(); busy = (int)number();
    } else if (command == "P") { patience = number();
    } else if (command == "T") { beats_allowed = number(); cycles_allowed = number();
    } else if (command == "F") {
      long count = number(), outputs = number();
      stream(count, outputs);
      continue;
    } else { fail(command.c_str()); continue; }
    printf("DONE\n");
  }
  top->final();
  delete top;
  return 0;
}
