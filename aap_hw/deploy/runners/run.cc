// Run the compiled network of a bundle without Python: check the files, run the reference inputs, compare the outputs
// with PyTorch's. Only libtvm_runtime.so and libtvm_ffi.so are needed. To build it, with P the folder that holds the
// packages tvm and tvm_ffi (python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'):
//
//   g++ -std=c++17 -O2 run.cc -o run -I$P/tvm/include -I$P/tvm_ffi/include -L$P/tvm/lib -L$P/tvm_ffi/lib
//       -Wl,--no-as-needed -ltvm_runtime -ltvm_ffi -ldl -Wl,-rpath,$P/tvm/lib:$P/tvm_ffi/lib
//
// Then: ./run [FOLDER] [--print] [--time]. Exits with 0 if the outputs agree, 1 if they do not, 2 if the bundle does
// not fit this machine or is damaged; then nothing of it has been loaded.
#include <dlfcn.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/runtime/base.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;
using ffi::json::Array;
using ffi::json::Object;

constexpr int64_t kSchemaVersion = 6;
constexpr size_t kAlignment = 64;  // bytes; compiled code takes it for granted
constexpr int kPooledAllocator = 2;
constexpr int kRunsOfOneTiming = 50;

// The bundle is damaged or does not fit this machine; the message is one sentence.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::string ReadFile(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw Refused("cannot read " + path + "; copy the bundle again");
  try {
    return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  } catch (const std::exception&) {  // the disk is damaged, or this is a folder
    throw Refused("cannot read " + path + "; copy the bundle again");
  }
}

// SHA-256 as 64 hexadecimal digits (FIPS 180-4).
std::string Sha256(std::string data) {
  // The first 32 bits of the fractional parts of the square and cube roots of the first primes.
  std::array<uint32_t, 64> k;
  std::array<uint32_t, 8> h;
  auto fraction = [](long double root) { return uint32_t(std::floor((root - std::floor(root)) * 4294967296.0L)); };
  for (unsigned count = 0, n = 2; count < 64; ++n) {
    bool is_prime = true;
    for (unsigned d = 2; d * d <= n; ++d) is_prime = is_prime && n % d != 0;
    if (!is_prime) continue;
    k[count] = fraction(std::cbrt((long double)n));
    if (count < 8) h[count] = fraction(std::sqrt((long double)n));
    ++count;
  }
  const uint64_t bits = uint64_t(data.size()) * 8;
  data.push_back('\x80');
  while (data.size() % 64 != 56) data.push_back('\0');
  for (int shift = 56; shift >= 0; shift -= 8) data.push_back(char(bits >> shift));

  auto turn = [](uint32_t x, int n) { return x >> n | x << (32 - n); };
  for (size_t at = 0; at < data.size(); at += 64) {
    std::array<uint32_t, 64> w;
    for (int i = 0; i < 16; ++i) {
      w[i] = 0;
      for (int j = 0; j < 4; ++j) w[i] = w[i] << 8 | uint8_t(data[at + 4 * i + j]);
    }
    for (int i = 16; i < 64; ++i) {
      uint32_t low = turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3;
      uint32_t high = turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + low + w[i - 7] + high;
    }
    auto v = h;
    for (int i = 0; i < 64; ++i) {
      uint32_t choice = (v[4] & v[5]) ^ (~v[4] & v[6]);
      uint32_t majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
      uint32_t one = v[7] + (turn(v[4], 6) ^ turn(v[4], 11) ^ turn(v[4], 25)) + choice + k[i] + w[i];
      uint32_t two = (turn(v[0], 2) ^ turn(v[0], 13) ^ turn(v[0], 22)) + majority;
      v = {one + two, v[0], v[1], v[2], v[3] + one, v[4], v[5], v[6]};
    }
    for (int i = 0; i < 8; ++i) h[i] += v[i];
  }
  std::string digits;
  char eight[9];
  for (uint32_t word : h) {
    std::snprintf(eight, sizeof eight, "%08x", word);
    digits += eight;
  }
  return digits;
}

// The processor that a program or library is for.
std::string MachineOf(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  unsigned char header[20] = {};
  stream.read(reinterpret_cast<char*>(header), sizeof header);
  if (!stream || std::memcmp(header, "\x7f" "ELF", 4) != 0) throw Refused(path + " is not a library");
  switch (int number = header[18] | header[19] << 8) {
    case 3: return "i386";
    case 40: return "arm";
    case 62: return "x86_64";
    case 183: return "aarch64";
    case 243: return "riscv";
    default: return "ELF machine " + std::to_string(number);
  }
}

// What Linux says that the CPU can do, with blanks around each word; empty where it does not say.
std::string CpuFeatures(const std::string& machine) {
  const std::string title = machine == "aarch64" ? "Features" : "flags";
  std::ifstream stream("/proc/cpuinfo");
  for (std::string line; std::getline(stream, line);)
    if (line.compare(0, title.size(), title) == 0) return line.substr(line.find(':') + 1) + " ";
  return "";
}

template <typename T>
T Field(const Object& object, const char* name) {
  auto found = object.find(ffi::String(name));
  if (found == object.end()) throw Refused(std::string("manifest.json is damaged (it lacks ") + name + ")");
  auto value = (*found).second.try_cast<T>();
  if (!value) throw Refused(std::string("manifest.json is damaged (at ") + name + ")");
  return *value;
}

// A tensor that goes into the library, perhaps as bytes, or comes out of it, and then how far it may be from PyTorch's,
// or if it decides, which share of it may be another.
struct Tensor {
  std::string name;
  ffi::Shape shape;
  size_t elements;
  double tolerance;
  bool is_bytes;
  bool decides;
};

// What the manifest lists as "inputs" or "outputs".
std::vector<Tensor> TensorsOf(const Object& manifest, const char* kind) {
  const Refused damaged(std::string("manifest.json is damaged (at ") + kind + "); copy the bundle again");
  const bool is_output = std::strcmp(kind, "outputs") == 0;
  std::vector<Tensor> tensors;
  std::vector<std::string> names;
  for (const auto& item : Field<Array>(manifest, kind)) {
    auto object = item.try_cast<Object>();
    if (!object) throw damaged;
    std::vector<int64_t> extents;
    size_t elements = 1;
    for (const auto& extent : Field<Array>(*object, "shape")) {
      extents.push_back(extent.try_cast<int64_t>().value_or(0));
      if (extents.back() < 1) throw damaged;
      elements *= size_t(extents.back());
    }
    const double tolerance = is_output ? Field<double>(*object, "tolerance") : 1;
    const bool decides = is_output && Field<bool>(*object, "decides");
    const std::string type = is_output ? std::string("float32") : std::string(Field<ffi::String>(*object, "passed_as"));
    if (!(tolerance > 0) || (type != "float32" && type != "uint8")) throw damaged;
    names.push_back(Field<ffi::String>(*object, "name"));
    const ffi::Shape shape(extents.begin(), extents.end());
    tensors.push_back({names.back(), shape, elements, tolerance, type == "uint8", decides});
  }
  std::sort(names.begin(), names.end());
  const bool is_twice = std::adjacent_find(names.begin(), names.end()) != names.end();
  if (tensors.empty() || is_twice) throw damaged;
  return tensors;
}

// The manifest of a bundle that is whole and fits this machine; nothing is loaded.
Object Check(const std::string& folder) {
  ffi::String problem;
  auto document = ffi::json::Parse(ReadFile(folder + "/manifest.json"), &problem);
  auto parsed = document.try_cast<Object>();
  if (!problem.empty() || !parsed) throw Refused("manifest.json is damaged or cut short; copy the bundle again");
  Object manifest = *parsed;
  if (Field<int64_t>(manifest, "schema_version") != kSchemaVersion)
    throw Refused("manifest.json is of another version than this program; use the bundle's own run.cc");

  Object digests = Field<Object>(manifest, "sha256"), reference = Field<Object>(manifest, "reference");
  Object requires_ = Field<Object>(manifest, "requires");
  const bool has_gpu = Field<ffi::String>(requires_, "accelerator") == "cuda";
  std::vector<std::string> names = {"model.so", Field<ffi::String>(reference, "inputs"),
                                    Field<ffi::String>(reference, "outputs")};
  if (has_gpu) names.push_back("kernels.cubin");
  for (const std::string& name : names) {
    const std::string path = folder + "/" + name;
    if (name.find('/') != std::string::npos || Sha256(ReadFile(path)) != Field<ffi::String>(digests, name.c_str()))
      throw Refused(path + " is not the file that was deployed (its checksum differs); copy the bundle again");
  }

  TensorsOf(manifest, "inputs");  // refuses what is damaged
  TensorsOf(manifest, "outputs");

  const std::string here = MachineOf("/proc/self/exe");
  for (const std::string& machine : {std::string(Field<ffi::String>(requires_, "machine")), MachineOf(folder + "/model.so")})
    if (machine != here)
      throw Refused("the bundle is for " + machine + " and this program runs on " + here + "; deploy for this machine");
  const std::string present = CpuFeatures(here);
  for (const auto& item : Field<Array>(requires_, "cpu_features")) {
    const std::string feature = item.cast<ffi::String>();
    if (!present.empty() && present.find(" " + feature + " ") == std::string::npos)
      throw Refused("the network was compiled for a CPU with " + feature + " and this one has none of it");
  }
  if (has_gpu && dlopen("libcuda.so.1", RTLD_NOW) == nullptr)
    throw Refused(std::string("the network needs an NVIDIA GPU and its driver is not installed (") + dlerror() + ")");

  // The package's version may say more than the library's: 0.27.0.post1 has the headers of 0.27.0.
  const std::string wanted = Field<ffi::String>(requires_, "tvm");
  if (wanted != TVM_VERSION && wanted.compare(0, std::strlen(TVM_VERSION) + 1, TVM_VERSION ".") != 0)
    throw Refused("the network was compiled with TVM " + wanted + " and this program with TVM " TVM_VERSION
                  "; build it with the headers and libraries of the former");
  return manifest;
}

struct AlignedMemory {
  void AllocData(DLTensor* tensor) {
    const size_t bytes = ffi::GetDataSize(*tensor);
    tensor->data = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    if (tensor->data == nullptr) throw std::bad_alloc();
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

// The network of a bundle, ready to be called.
class Model {
 public:
  Model(const std::string& folder, const Object& manifest)
      : outputs_(TensorsOf(manifest, "outputs")), machine_(Load(folder, Field<Object>(manifest, "requires"))) {
    for (const Tensor& input : TensorsOf(manifest, "inputs"))
      inputs_.push_back(ffi::Tensor::FromNDAlloc(
          AlignedMemory(), input.shape, input.is_bytes ? DLDataType{kDLUInt, 8, 1} : DLDataType{kDLFloat, 32, 1},
          {kDLCPU, 0}));
    set_input_ = Of("set_input"), invoke_ = Of("invoke_stateful"), get_output_ = Of("get_output");
    copy_ = ffi::Function::GetGlobalRequired("runtime.TVMTensorCopyToBytes");
    size_t elements = 0;
    for (const Tensor& output : outputs_) elements += output.elements;
    values_.resize(elements);
  }

  size_t InputSize() const {
    size_t elements = 0;
    for (const ffi::Tensor& input : inputs_) elements += input.numel();
    return elements;
  }
  const std::vector<Tensor>& Outputs() const { return outputs_; }

  // All outputs for one sample, one behind the other, as its inputs are; the next call overwrites them. Inputs of whole
  // numbers are given as float, which knows all of up to 2^24; those that the library takes as bytes are made so.
  const std::vector<float>& operator()(const float* sample) {
    std::vector<ffi::AnyView> arguments = {"main"};
    for (const ffi::Tensor& input : inputs_) {
      if (input.dtype().bits == 8)
        std::copy(sample, sample + input.numel(), static_cast<uint8_t*>(input.data_ptr()));
      else
        std::memcpy(input.data_ptr(), sample, input.numel() * sizeof(float));
      sample += input.numel();
      arguments.push_back(input);
    }
    ffi::Any nothing;
    set_input_.CallPacked(arguments.data(), int32_t(arguments.size()), &nothing);
    return Run();
  }

  // Compute once more what was computed last.
  const std::vector<float>& Run() {
    invoke_("main");
    float* next = values_.data();
    for (size_t i = 0; i < outputs_.size(); ++i) {
      ffi::Any result = outputs_.size() > 1 ? get_output_("main", int64_t(i)) : get_output_("main");
      copy_(result.cast<ffi::Tensor>(), static_cast<void*>(next), int64_t(outputs_[i].elements * sizeof(float)));
      next += outputs_[i].elements;
    }
    return values_;
  }

 private:
  // The library's virtual machine, ready on the device that it was compiled for.
  static ffi::Module Load(const std::string& folder, const Object& requires_) {
    setenv("TVM_NUM_THREADS", std::to_string(Field<int64_t>(requires_, "threads")).c_str(), 1);
    const bool has_gpu = Field<ffi::String>(requires_, "accelerator") == "cuda";
    if (has_gpu) {
      if (dlopen("libtvm_runtime_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr)
        throw std::runtime_error(std::string("TVM's CUDA runtime cannot be loaded: ") + dlerror());
      // TVM asks this function to compile the source of the kernels, which has been done.
      const std::string kernels = ReadFile(folder + "/kernels.cubin");
      auto compiled = [kernels](const ffi::String&) { return ffi::Bytes(kernels); };
      ffi::Function::SetGlobal("tvm_callback_cuda_compile", ffi::Function::FromTyped(compiled), true);
    }
    ffi::Module library = ffi::Module::LoadFromFile(folder + "/model.so");
    ffi::Module machine = library->GetFunction("vm_load_executable", false).value()().cast<ffi::Module>();
    ffi::Function initialise = machine->GetFunction("vm_initialization", false).value();
    const int cpu = kDLCPU, gpu = kDLCUDA;
    if (has_gpu)
      initialise(gpu, 0, kPooledAllocator, cpu, 0, kPooledAllocator);
    else
      initialise(cpu, 0, kPooledAllocator);
    return machine;
  }

  ffi::Function Of(const char* name) { return machine_->GetFunction(name, false).value(); }

  std::vector<ffi::Tensor> inputs_;
  std::vector<Tensor> outputs_;
  std::vector<float> values_;
  ffi::Module machine_;
  ffi::Function set_input_, invoke_, get_output_, copy_;
};

// The float32 values of a NumPy file, whose checksum has been checked.
std::vector<float> ReadArray(const std::string& path, size_t elements) {
  const std::string bytes = ReadFile(path);
  const size_t size = elements * sizeof(float);
  size_t start = 10;  // of the header, whose length stands before it
  if (bytes.size() >= start) start += uint8_t(bytes[8]) + (size_t(uint8_t(bytes[9])) << 8);
  if (bytes.size() != start + size || bytes.compare(0, 6, "\x93NUMPY") != 0 || bytes.find("'<f4'") > start)
    throw Refused(path + " does not hold the values that manifest.json says; copy the bundle again");
  std::vector<float> values(elements);
  std::memcpy(values.data(), bytes.data() + start, size);
  return values;
}

double TimeMs(Model* model) {
  std::vector<double> samples;
  for (int i = 0; i < kRunsOfOneTiming; ++i) {
    auto start = std::chrono::steady_clock::now();
    model->Run();
    samples.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(samples.begin(), samples.begin() + kRunsOfOneTiming / 2, samples.end());
  return samples[kRunsOfOneTiming / 2];
}

int Main(const std::string& folder, bool print, bool time) {
  Object manifest = Check(folder);
  Object reference = Field<Object>(manifest, "reference");
  const size_t count = Field<int64_t>(reference, "count");
  auto read = [&](const char* kind) {
    size_t elements = 0;
    for (const Tensor& tensor : TensorsOf(manifest, kind)) elements += tensor.elements;
    return ReadArray(folder + "/" + std::string(Field<ffi::String>(reference, kind)), count * elements);
  };
  auto inputs = read("inputs"), expected = read("outputs");
  Model model(folder, manifest);
  std::vector<double> differences(model.Outputs().size());
  for (size_t i = 0; i < count; ++i) {
    const std::vector<float>& values = model(&inputs[i * model.InputSize()]);
    size_t j = 0;
    for (size_t k = 0; k < differences.size(); ++k) {
      const Tensor& output = model.Outputs()[k];
      for (size_t end = j + output.elements; j < end; ++j) {
        const double theirs = expected[i * values.size() + j], apart = std::fabs(double(values[j]) - theirs);
        if (output.decides)
          differences[k] += (values[j] == theirs ? 0.0 : 1.0) / double(count * output.elements);
        else if (std::isnan(apart) || apart > differences[k])
          differences[k] = apart;  // NaN stays
        if (print) std::printf("%.9g%c", values[j], j + 1 < values.size() ? ' ' : '\n');
      }
    }
  }
  bool agrees = true;
  for (size_t k = 0; k < differences.size(); ++k) {
    const Tensor& output = model.Outputs()[k];
    const bool is_right = differences[k] <= output.tolerance;
    const std::string where = differences.size() > 1 ? ", " + output.name : "";
    const char* what = output.decides ? "share of other decisions than PyTorch's" : "largest difference from PyTorch";
    std::printf("%zu reference inputs%s: %s %.2g, %s %.2g\n", count, where.c_str(), what, differences[k],
                is_right ? "within" : "MORE THAN", output.tolerance);
    agrees = agrees && is_right;
  }
  if (time) std::printf("%.3f ms a call, median of %d\n", TimeMs(&model), kRunsOfOneTiming);
  return agrees ? 0 : 1;
}

int main(int count, char** words) {
  std::string folder = ".";
  bool print = false, time = false;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    if (word == "--print") print = true;
    else if (word == "--time") time = true;
    else if (word[0] != '-') folder = word;
    else return std::fprintf(stderr, "usage: run [FOLDER] [--print] [--time]\n"), 2;
  }
  try {
    return Main(folder, print, time);
  } catch (const Refused& refusal) {
    std::fprintf(stderr, "refused: %s\n", refusal.what());
    return 2;
  } catch (const std::exception& problem) {
    std::fprintf(stderr, "failed: %s\n", problem.what());
    return 1;
  }
}
