/* Runs an exported model with TensorFlow's C library alone, as a server without Python does.
 *
 *   serve MODEL OPS_LIBRARY INPUT OUTPUT...
 *
 * INPUT and OUTPUT are names of tensors, such as serving_default_source:0. Standard input holds the
 * number of texts and then, for each, its length and its bytes; numbers are 32-bit, little-endian.
 * Standard output gets, for each OUTPUT, 's' or 'f', the number of its elements, and the elements:
 * strings as above, floats as they are. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"
#include "tensorflow/c/tf_tstring.h"

#define MAX_OUTPUTS 8

static void fail(const char* doing, const char* why) {
  fprintf(stderr, "serve: %s: %s\n", doing, why);
  exit(1);
}

static void check(const char* doing, const TF_Status* status) {
  if (TF_GetCode(status) != TF_OK) fail(doing, TF_Message(status));
}

static void read_bytes(void* to, size_t size) {
  if (fread(to, 1, size, stdin) != size) fail("reading the texts", "standard input ended early");
}

static void write_bytes(const void* from, size_t size) {
  if (fwrite(from, 1, size, stdout) != size) fail("writing the results", "standard output is closed");
}

static uint32_t read_number(void) {
  uint32_t number;
  read_bytes(&number, sizeof number);
  return number;
}

static void write_number(size_t number) {
  uint32_t written = (uint32_t)number;
  write_bytes(&written, sizeof written);
}

static TF_Tensor* read_texts(void) {
  int64_t count = read_number();
  TF_Tensor* texts = TF_AllocateTensor(TF_STRING, &count, 1, (size_t)count * sizeof(TF_TString));
  TF_TString* text = TF_TensorData(texts);
  for (int64_t i = 0; i < count; i++) {
    uint32_t size = read_number();
    char* bytes = malloc(size + 1);
    if (bytes == NULL) fail("reading the texts", "out of memory");
    read_bytes(bytes, size);
    TF_TString_Init(&text[i]);
    TF_TString_Copy(&text[i], bytes, size);
    free(bytes);
  }
  return texts;
}

static void write_tensor(const TF_Tensor* tensor) {
  size_t count = (size_t)TF_TensorElementCount(tensor);
  if (TF_TensorType(tensor) == TF_STRING) {
    const TF_TString* text = TF_TensorData(tensor);
    write_bytes("s", 1);
    write_number(count);
    for (size_t i = 0; i < count; i++) {
      write_number(TF_TString_GetSize(&text[i]));
      write_bytes(TF_TString_GetDataPointer(&text[i]), TF_TString_GetSize(&text[i]));
    }
  } else if (TF_TensorType(tensor) == TF_FLOAT) {
    write_bytes("f", 1);
    write_number(count);
    write_bytes(TF_TensorData(tensor), count * sizeof(float));
  } else {
    fail("writing the results", "an output is neither of strings nor of floats");
  }
}

/* "name:2" is output 2 of the operation "name". */
static TF_Output find(TF_Graph* graph, const char* tensor) {
  char name[512];
  const char* colon = strrchr(tensor, ':');
  if (colon == NULL || (size_t)(colon - tensor) >= sizeof name) fail(tensor, "not a tensor's name");
  memcpy(name, tensor, (size_t)(colon - tensor));
  name[colon - tensor] = '\0';
  TF_Output output = {TF_GraphOperationByName(graph, name), atoi(colon + 1)};
  if (output.oper == NULL) fail(tensor, "not in the graph");
  return output;
}

int main(int argc, char** argv) {
  int outputs = argc - 4;
  if (outputs < 1 || outputs > MAX_OUTPUTS) fail("arguments", "MODEL OPS_LIBRARY INPUT OUTPUT...");

  TF_Status* status = TF_NewStatus();
  /* Before the model: its graph names the operations that the library brings. */
  TF_Library* library = TF_LoadLibrary(argv[2], status);
  check("loading the operations", status);

  TF_Graph* graph = TF_NewGraph();
  TF_SessionOptions* options = TF_NewSessionOptions();
  const char* tags[] = {"serve"};
  TF_Session* session =
      TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, NULL, status);
  check("loading the model", status);

  TF_Output input = find(graph, argv[3]);
  TF_Output fetched[MAX_OUTPUTS];
  TF_Tensor* results[MAX_OUTPUTS] = {NULL};
  for (int i = 0; i < outputs; i++) fetched[i] = find(graph, argv[4 + i]);
  TF_Tensor* texts = read_texts();
  TF_SessionRun(session, NULL, &input, &texts, 1, fetched, results, outputs, NULL, 0, NULL, status);
  check("running the model", status);
  for (int i = 0; i < outputs; i++) {
    write_tensor(results[i]);
    TF_DeleteTensor(results[i]);
  }

  TF_DeleteTensor(texts);
  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteSessionOptions(options);
  TF_DeleteGraph(graph);
  TF_DeleteLibraryHandle(library);
  TF_DeleteStatus(status);
  return fflush(stdout) == 0 ? 0 : 1;
}
