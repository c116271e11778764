/* Translates lines with an exported model, using only TensorFlow's C library: the process runs no Python.
 *
 *   serve MODEL [BATCH]
 *
 * MODEL is a version of an export (saved_models/en-de/1) or the folder of the versions, of which the newest is loaded.
 * Each line of standard input gives one line of standard output. BATCH lines are translated together, 1 by default. A
 * line may hold any bytes; of a very long line only the beginning is read. */

#include <dirent.h>
#include <inttypes.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tensorflow/c/c_api.h"
#include "tensorflow/c/tf_tstring.h"

#define MAX_LINE (1 << 20) /* far more than the model reads of a line */
#define MAX_PATH 4096

/* Path of the library with the tokenizer's operations, set by the Makefile. */
#ifndef OPS_LIBRARY
#error "compile with -DOPS_LIBRARY=\"...\", or call make"
#endif

static void fail(const char* doing, const char* why) {
  fprintf(stderr, "serve: %s: %s\n", doing, why);
  exit(1);
}

static void check(const char* doing, const TF_Status* status) {
  if (TF_GetCode(status) != TF_OK) fail(doing, TF_Message(status));
}

static void* allocate(size_t size) {
  void* memory = malloc(size);
  if (memory == NULL) fail("allocating memory", "there is none left");
  return memory;
}

/* Returns the pages of the libraries' code and constants to the system. Loading reads far more of them than translating;
 * pages that are needed again are read from the file, which the system caches while it has memory. Only code and the first
 * pages of a file are never written to: other read-only pages may hold addresses that the loader has set. */
static void give_back_code(void) {
  FILE* maps = fopen("/proc/self/maps", "r");
  if (maps == NULL) return; /* the pages stay in memory */
  uintptr_t start, end, offset;
  for (char line[MAX_PATH + 128], mode[5]; fgets(line, sizeof line, maps) != NULL;) {
    if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s %" SCNxPTR, &start, &end, mode, &offset) != 4) continue;
    int is_clean = strcmp(mode, "r-xp") == 0 || (strcmp(mode, "r--p") == 0 && offset == 0);
    if (is_clean && strstr(line, "/libtensorflow") != NULL) madvise((void*)start, end - start, MADV_DONTNEED);
  }
  fclose(maps);
}

/* ---- The folder of the model ---- */

/* Finds the newest version in a folder; the folder itself if it is a model or holds none. */
static void find_version(const char* folder, char path[MAX_PATH]) {
  long newest = -1;
  char file[MAX_PATH];
  snprintf(path, MAX_PATH, "%s", folder);
  snprintf(file, sizeof file, "%s/saved_model.pb", folder);
  DIR* entries = access(file, R_OK) == 0 ? NULL : opendir(folder);
  if (entries == NULL) return;
  for (struct dirent* entry; (entry = readdir(entries)) != NULL;) {
    char* rest;
    long version = strtol(entry->d_name, &rest, 10);
    if (*rest == '\0' && version > newest) newest = version;
  }
  closedir(entries);
  if (newest >= 0) snprintf(path, MAX_PATH, "%s/%ld", folder, newest);
}

/* ---- Names of tensors, from the protobuf message in the model's file ---- */

typedef struct {
  const uint8_t* start;
  const uint8_t* end;
} Message;

static uint64_t read_varint(Message* message) {
  uint64_t value = 0;
  for (int shift = 0; message->start < message->end && shift < 64; shift += 7) {
    uint8_t byte = *message->start++;
    value |= (uint64_t)(byte & 127) << shift;
    if (byte < 128) return value;
  }
  fail("reading the model's signatures", "the message is damaged");
  return 0;
}

/* Reads the next field that is a message or a string and skips numbers. Returns the field number; 0 at the end. */
static uint64_t next_field(Message* message, Message* field) {
  while (message->start < message->end) {
    uint64_t key = read_varint(message), size = 0;
    switch (key & 7) {
      case 0: read_varint(message); continue;
      case 1: size = 8; break;
      case 2: size = read_varint(message); break;
      case 5: size = 4; break;
      default: fail("reading the model's signatures", "a field of an unknown kind");
    }
    if (size > (uint64_t)(message->end - message->start)) fail("reading the model's signatures", "it ends early");
    field->start = message->start;
    field->end = message->start += size;
    if ((key & 7) == 2) return key >> 3;
  }
  return 0;
}

static Message member(Message message, uint64_t number) {
  Message field;
  for (uint64_t found; (found = next_field(&message, &field)) != 0;)
    if (found == number) return field;
  return (Message){NULL, NULL};
}

/* The value of a key in the map that is field `number`. */
static Message look_up(Message message, uint64_t number, const char* key) {
  Message entry;
  for (uint64_t found; (found = next_field(&message, &entry)) != 0;) {
    Message name = member(entry, 1);
    if (found == number && (size_t)(name.end - name.start) == strlen(key) && memcmp(name.start, key, strlen(key)) == 0)
      return member(entry, 2);
  }
  fail("looking in the model's signatures, which have no", key);
  return entry;
}

/* Finds the tensor, "operation:index", of an input (field 1 of a signature) or an output (field 2). */
static TF_Output find_tensor(TF_Graph* graph, Message signature, uint64_t side, const char* key) {
  char name[512];
  Message text = member(look_up(signature, side, key), 1);
  snprintf(name, sizeof name, "%.*s", (int)(text.end - text.start), (const char*)text.start);
  char* colon = strrchr(name, ':');
  if (colon == NULL) fail("reading the model's signatures, which give no tensor for", key);
  *colon = '\0';
  TF_Output tensor = {TF_GraphOperationByName(graph, name), atoi(colon + 1)};
  if (tensor.oper == NULL) fail("looking in the graph, which has no", name);
  return tensor;
}

/* ---- Lines and tensors of strings ---- */

/* Reads a line without its end into `line`, MAX_LINE bytes at most. Returns its length, or -1 at the end of input. */
static ssize_t read_line(char* line) {
  size_t length = 0;
  int byte;
  while ((byte = getchar_unlocked()) != EOF && byte != '\n')
    if (length < MAX_LINE) line[length++] = (char)byte;
  if (byte == EOF && length == 0) return -1;
  if (length > 0 && line[length - 1] == '\r') length--;
  return (ssize_t)length;
}

/* Reads up to `most` lines. Returns NULL at the end of input. */
static TF_Tensor* read_lines(int64_t most, char* line) {
  TF_TString* lines = allocate((size_t)most * sizeof(TF_TString));
  int64_t count = 0;
  for (ssize_t length; count < most && (length = read_line(line)) >= 0; count++) {
    TF_TString_Init(&lines[count]);
    TF_TString_Copy(&lines[count], line, (size_t)length);
  }
  TF_Tensor* texts = NULL;
  if (count > 0) {
    texts = TF_AllocateTensor(TF_STRING, &count, 1, (size_t)count * sizeof(TF_TString));
    memcpy(TF_TensorData(texts), lines, (size_t)count * sizeof(TF_TString));
  }
  free(lines);
  return texts;
}

/* Frees the strings too: a tensor does not free strings that it was filled with here. */
static void delete_lines(TF_Tensor* texts) {
  TF_TString* lines = TF_TensorData(texts);
  for (int64_t i = 0; i < TF_TensorElementCount(texts); i++) TF_TString_Dealloc(&lines[i]);
  TF_DeleteTensor(texts);
}

static void write_lines(const TF_Tensor* translations) {
  const TF_TString* texts = TF_TensorData(translations);
  for (int64_t i = 0; i < TF_TensorElementCount(translations); i++) {
    const char* text = TF_TString_GetDataPointer(&texts[i]);
    for (size_t k = 0; k < TF_TString_GetSize(&texts[i]); k++) putchar_unlocked(text[k] == '\n' ? ' ' : text[k]);
    putchar_unlocked('\n');
  }
  if (fflush(stdout) != 0) fail("writing the translations", "standard output is closed");
}

int main(int argc, char** argv) {
  int64_t batch = argc == 3 ? atol(argv[2]) : 1;
  if (argc < 2 || argc > 3 || batch < 1) fail("usage", "serve MODEL [BATCH], with a BATCH of 1 or more");
  char path[MAX_PATH];
  find_version(argv[1], path);
  mallopt(M_ARENA_MAX, 1); /* a single heap: the heaps of threads would keep their freed memory */

  TF_Status* status = TF_NewStatus();
  TF_LoadLibrary(OPS_LIBRARY, status); /* before the model, whose graph names these operations */
  check("loading the tokenizer's operations", status);
  give_back_code();
  TF_Graph* graph = TF_NewGraph();
  TF_SessionOptions* options = TF_NewSessionOptions();
  TF_Buffer* description = TF_NewBuffer();
  const char* tags[] = {"serve"};
  TF_Session* session = TF_LoadSessionFromSavedModel(options, NULL, path, tags, 1, graph, description, status);
  check("loading the model", status);

  const uint8_t* bytes = description->data;
  Message signature = look_up((Message){bytes, bytes + description->length}, 5, "serving_default");
  TF_Output source = find_tensor(graph, signature, 1, "source");
  TF_Output text = find_tensor(graph, signature, 2, "text");
  TF_DeleteBuffer(description);
  malloc_trim(0); /* loading takes much more memory than the loaded model */
  give_back_code();

  char* line = allocate(MAX_LINE);
  for (TF_Tensor* lines; (lines = read_lines(batch, line)) != NULL;) {
    TF_Tensor* translations;
    TF_SessionRun(session, NULL, &source, &lines, 1, &text, &translations, 1, NULL, 0, NULL, status);
    check("translating", status);
    write_lines(translations);
    delete_lines(lines);
    TF_DeleteTensor(translations);
  }
  free(line);
  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteSessionOptions(options);
  TF_DeleteGraph(graph);
  TF_DeleteStatus(status);
  return 0;
}
