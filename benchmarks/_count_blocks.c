// How often every block of an emulated program runs between two marks: a plugin for QEMU's user emulation (API 1).
//
// The program marks by asking for the priority of a process that cannot be: getpriority(PRIO_PROCESS, MARK) begins, and
// getpriority(PRIO_PROCESS, MARK + 1) ends. Then the file of the argument "out" gets a line for each block that ran:
// its address, how often it ran, and its instructions, eight hexadecimal digits each. For programs of one thread.
//
//   gcc -O2 -shared -fPIC -I FOLDER_OF_THE_HEADER -o count_blocks.so _count_blocks.c

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qemu-plugin.h"

QEMU_PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

enum { GETPRIORITY = 141 };  // on aarch64
static const uint64_t MARK = 0x5aa50000;

struct block {
    struct block *next;
    uint64_t address, runs, runs_before;
    size_t length;
    uint32_t instructions[];
};

static struct block *blocks;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char out[4096];

// A block that is translated anew is another one here; who reads the file adds them up.
static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
    size_t length = qemu_plugin_tb_n_insns(tb);
    struct block *block = calloc(1, sizeof *block + length * sizeof block->instructions[0]);
    if (!block) abort();
    block->address = qemu_plugin_tb_vaddr(tb);
    block->length = length;
    for (size_t i = 0; i < length; i++)
        memcpy(&block->instructions[i], qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), sizeof(uint32_t));
    pthread_mutex_lock(&lock);
    block->next = blocks;
    blocks = block;
    pthread_mutex_unlock(&lock);
    qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &block->runs, 1);
}

static void write_blocks(void) {
    FILE *file = fopen(out, "w");
    if (!file) {
        perror(out);
        abort();
    }
    for (struct block *block = blocks; block; block = block->next) {
        uint64_t runs = block->runs - block->runs_before;
        if (!runs) continue;
        fprintf(file, "%" PRIx64 " %" PRIu64 " ", block->address, runs);
        for (size_t i = 0; i < block->length; i++) fprintf(file, "%08" PRIx32, block->instructions[i]);
        fputc('\n', file);
    }
    if (fclose(file)) {
        perror(out);
        abort();
    }
}

static void called(qemu_plugin_id_t id, unsigned int cpu, int64_t number, uint64_t which, uint64_t who, uint64_t a3,
                   uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    if (number != GETPRIORITY || (who & 0xffffffff) < MARK || (who & 0xffffffff) > MARK + 1) return;
    pthread_mutex_lock(&lock);
    if ((who & 0xffffffff) == MARK) {
        for (struct block *block = blocks; block; block = block->next) block->runs_before = block->runs;
    } else {
        write_blocks();
    }
    pthread_mutex_unlock(&lock);
}

QEMU_PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int count, char **arguments) {
    for (int i = 0; i < count; i++)
        if (!strncmp(arguments[i], "out=", 4)) snprintf(out, sizeof out, "%s", arguments[i] + 4);
    if (!out[0]) {
        fputs("count_blocks: no argument out=FILE\n", stderr);
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
